//! Prints the visitors: one call for each visited field, by shared or by exclusive reference.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::Member;
use syn::spanned::Spanned as _;

use crate::ast::{Body, Field, Input, Variant};
use crate::value::at;

pub(crate) fn visit(input: &Input<'_>) -> TokenStream {
    let (body, cursor) = (body(input, &quote!(&)), cursor());
    quote! {
        fn visit<'__a>(&'__a self, #cursor: &mut __peft::__private::Cursor<'__a>) {
            #body
        }
    }
}

pub(crate) fn visit_mut(input: &Input<'_>) -> TokenStream {
    let (body, cursor) = (body(input, &quote!(&mut)), cursor());
    quote! {
        fn visit_mut<'__a>(&'__a mut self, #cursor: &mut __peft::__private::CursorMut<'__a>) {
            #body
        }
    }
}

/// The cursor's name, which user code cannot see.
fn cursor() -> Ident {
    Ident::new("__cursor", at(Span::call_site()))
}

fn body(input: &Input<'_>, reference: &TokenStream) -> TokenStream {
    let calls = match &input.body {
        Body::Struct(fields) => {
            let transparent = input.attrs.transparent.is_some();
            let calls = fields.iter().filter(|field| field.is_visited()).map(|field| {
                let member = &field.member;
                call(field, &quote!(#reference self.#member), transparent)
            });
            quote!(#(#calls)*)
        }
        Body::Enum(variants) if variants.is_empty() => quote!(match *self {}),
        Body::Enum(variants) => {
            let arms = variants.iter().map(arm);
            quote!(match self { #(#arms)* })
        }
        Body::Union(_) => TokenStream::new(),
    };
    let cursor = cursor();
    quote! {
        let _ = &#cursor;
        #calls
    }
}

fn arm(variant: &Variant<'_>) -> TokenStream {
    let ident = variant.ident;
    let bound: Vec<(&Field<'_>, Ident)> = variant
        .fields
        .iter()
        .enumerate()
        .filter(|(_, field)| field.is_visited())
        .map(|(index, field)| (field, format_ident!("__field{index}")))
        .collect();
    let patterns = bound.iter().map(|(field, name)| {
        let member: &Member = &field.member;
        quote!(#member: #name)
    });
    let transparent = variant.stands_for_its_field();
    let calls = bound.iter().map(|(field, name)| call(field, &quote!(#name), transparent));
    quote! {
        Self::#ident { #(#patterns,)* .. } => { #(#calls)* }
    }
}

/// One call of the cursor, under the span of the field's type: that is where an unknown type is reported.
fn call(field: &Field<'_>, place: &TokenStream, transparent: bool) -> TokenStream {
    let span = field.ty.span();
    if transparent || field.attrs.flatten.is_some() {
        return quote_spanned!(at(span)=> __cursor.flatten(#place););
    }
    let segment = field.segment();
    if field.attrs.blocks.is_some() {
        return quote_spanned!(at(span)=> __cursor.blocks(#segment, #place););
    }
    quote_spanned!(at(span)=> __cursor.child(#segment, #place);)
}
