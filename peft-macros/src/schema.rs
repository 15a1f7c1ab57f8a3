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
    let fields: TokenStream = fields
        .iter()
        .filter(|field| field.is_visited())
        .map(|field| {
            let segment = if field.attrs.flatten.is_some() { String::new() } else { field.segment() };
            let ty = &field.ty;
            let rank = field.attrs.rank.map(|rank| {
                let value = rank.value;
                quote_spanned!(at(rank.span)=> .with_rank(#value))
            });
            quote_spanned!(field.ty.span=> __peft::field::<#ty>(#segment) #rank,)
        })
        .collect();
    quote!(&__peft::Schema::module(#name, &[#fields]))
}

/// The schema of a field's type.
fn child(field: &Field) -> TokenStream {
    let ty = &field.ty;
    quote_spanned!(field.ty.span=> <#ty as __peft::Injectable>::SCHEMA)
}
