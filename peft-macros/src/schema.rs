//! Prints `const SCHEMA`: one entry for each visited field.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};

use crate::ast::{Body, Field, Input, Variant};
use crate::value::at;

pub(crate) fn schema(input: &Input<'_>) -> TokenStream {
    let name = input.original.ident.to_string();
    match &input.body {
        Body::Struct(fields) if input.attrs.transparent.is_some() => {
            fields.iter().find(|field| field.is_visited()).map(child).unwrap_or_default()
        }
        Body::Struct(fields) => module(&name, fields),
        Body::Enum(variants) => {
            let variants = variants.iter().map(variant);
            quote!(&__peft::Schema::choice(#name, &[#(#variants),*]))
        }
        Body::Union(_) => TokenStream::new(),
    }
}

fn variant(variant: &Variant<'_>) -> TokenStream {
    match variant.fields.as_slice() {
        [field] if variant.stands_for_its_field() => child(field),
        fields => module(&variant.ident.to_string(), fields),
    }
}

fn module(name: &str, fields: &[Field]) -> TokenStream {
    let visited: Vec<(&Field, String)> = fields
        .iter()
        .filter(|field| field.is_visited())
        .map(|field| (field, if field.attrs.flatten.is_some() { String::new() } else { field.segment() }))
        .collect();
    let children: TokenStream = visited
        .iter()
        .map(|(field, segment)| {
            let ty = &field.ty;
            quote_spanned!(ty.span=> __peft::Field(#segment, <#ty as __peft::Injectable>::SCHEMA),)
        })
        .collect();
    let ranks: TokenStream = visited
        .iter()
        .filter_map(|(field, segment)| {
            let rank = field.attrs.rank?;
            let value = rank.value;
            Some(quote_spanned!(at(rank.span)=> (#segment, #value),))
        })
        .collect();
    let with_ranks = if ranks.is_empty() { ranks } else { quote!(.with_ranks(&[#ranks])) };
    quote!(&__peft::Schema::module(#name, &[#children]) #with_ranks)
}

/// The schema of a field's type.
fn child(field: &Field) -> TokenStream {
    let ty = &field.ty;
    quote_spanned!(field.ty.span=> <#ty as __peft::Injectable>::SCHEMA)
}
