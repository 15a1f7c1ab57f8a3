//! The derive's own view of its input: structs, tuples and enums in one shape, with attributes parsed.

use proc_macro2::Span;
use syn::spanned::Spanned as _;
use syn::{Data, DeriveInput, Fields, Ident, Index, Member};

use crate::attr::{FieldAttrs, TypeAttrs};
use crate::diag::Diagnostics;
use crate::field_type::FieldType;

/// The type that the derive is on.
pub(crate) struct Input<'a> {
    pub(crate) original: &'a DeriveInput,
    pub(crate) attrs: TypeAttrs,
    pub(crate) body: Body<'a>,
}

/// What the type is made of.
pub(crate) enum Body<'a> {
    /// The fields of a struct.
    Struct(Vec<Field>),
    /// The variants of an enum.
    Enum(Vec<Variant<'a>>),
    /// A union, which cannot be visited.
    Union(Span),
}

/// A variant of an enum.
pub(crate) struct Variant<'a> {
    pub(crate) ident: &'a Ident,
    pub(crate) fields: Vec<Field>,
    /// Whether the variant has one unnamed field, which then stands for it.
    pub(crate) newtype: bool,
}

/// A field of a struct or variant.
pub(crate) struct Field {
    pub(crate) member: Member,
    pub(crate) ty: FieldType,
    pub(crate) attrs: FieldAttrs,
    pub(crate) span: Span,
}

impl<'a> Input<'a> {
    pub(crate) fn from_syn(original: &'a DeriveInput, diagnostics: &mut Diagnostics) -> Self {
        let attrs = TypeAttrs::from_attributes(&original.attrs, diagnostics);
        let body = match &original.data {
            Data::Struct(data) => Body::Struct(fields(&data.fields, diagnostics)),
            Data::Enum(data) => {
                let mut variants = Vec::new();
                for variant in &data.variants {
                    let newtype =
                        matches!(&variant.fields, Fields::Unnamed(fields) if fields.unnamed.len() == 1);
                    let fields = fields(&variant.fields, diagnostics);
                    variants.push(Variant { ident: &variant.ident, fields, newtype });
                }
                Body::Enum(variants)
            }
            Data::Union(data) => Body::Union(data.union_token.span()),
        };
        Self { original, attrs, body }
    }

    /// All fields of all variants.
    pub(crate) fn all_fields(&self) -> Vec<&Field> {
        match &self.body {
            Body::Struct(fields) => fields.iter().collect(),
            Body::Enum(variants) => variants.iter().flat_map(|variant| &variant.fields).collect(),
            Body::Union(_) => Vec::new(),
        }
    }
}

fn fields<'a>(fields: &'a Fields, diagnostics: &mut Diagnostics) -> Vec<Field> {
    let field = |(index, field): (usize, &'a syn::Field)| {
        let (member, span) = match &field.ident {
            Some(ident) => (Member::Named(ident.clone()), ident.span()),
            None => (Member::Unnamed(Index::from(index)), field.ty.span()),
        };
        Field {
            member,
            ty: FieldType::new(&field.ty),
            attrs: FieldAttrs::from_attributes(&field.attrs, diagnostics),
            span,
        }
    };
    fields.iter().enumerate().map(field).collect()
}

impl Variant<'_> {
    /// Whether the variant's only field is the module, so that paths have no segment for it.
    pub(crate) fn stands_for_its_field(&self) -> bool {
        self.newtype && self.fields.iter().all(|field| field.is_visited() && field.attrs.rename.is_none())
    }
}

impl Field {
    /// Whether the field is part of the walk.
    pub(crate) fn is_visited(&self) -> bool {
        self.attrs.skip.is_none()
    }

    /// The name in paths.
    pub(crate) fn segment(&self) -> String {
        match (&self.attrs.rename, &self.member) {
            (Some(rename), _) => rename.value(),
            (None, Member::Named(ident)) => {
                let name = ident.to_string();
                name.strip_prefix("r#").unwrap_or(&name).to_owned()
            }
            (None, Member::Unnamed(index)) => index.index.to_string(),
        }
    }

    /// The token that gives the field its name.
    pub(crate) fn segment_span(&self) -> Span {
        self.attrs.rename.as_ref().map_or(self.span, syn::LitStr::span)
    }
}
