//! Prints `const SCHEMA`: one entry for each visited field.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned as _;

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
            quote!(&__peft::__private::Schema::choice(#name, &[#(#variants),*]))
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

fn module(name: &str, fields: &[Field<'_>]) -> TokenStream {
    let fields = fields.iter().filter(|field| field.is_visited()).map(|field| {
        let segment = if field.attrs.flatten.is_some() { String::new() } else { field.segment() };
        let child = child(field);
        let rank = field.attrs.rank.map(|rank| {
            let value = rank.value;
            quote_spanned!(at(rank.span)=> .with_rank(#value))
        });
        quote!(__peft::__private::Field::new(#segment, #child) #rank)
    });
    quote!(&__peft::__private::Schema::module(#name, &[#(#fields),*]))
}

/// The schema of a field's type.
fn child(field: &Field<'_>) -> TokenStream {
    let ty = field.ty;
    quote_spanned!(at(ty.span())=> <#ty as __peft::__private::Injectable>::SCHEMA)
}
