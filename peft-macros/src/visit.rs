//! Prints the visitors: one call for each visited field, by shared or by exclusive reference.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::{Member, Token};

use crate::ast::{Body, Field, Input, Variant};
use crate::value::at;

/// What a visitor passes to the cursor.
enum Place<'a> {
    /// `&self.member`
    Shared(&'a Member),
    /// `&mut self.member`
    Exclusive(&'a Member),
    /// What a pattern binds.
    Bound(&'a Ident),
}

impl ToTokens for Place<'_> {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        let member = match self {
            Self::Bound(name) => return name.to_tokens(tokens),
            Self::Shared(member) | Self::Exclusive(member) => member,
        };
        <Token![&]>::default().to_tokens(tokens);
        if matches!(self, Self::Exclusive(_)) {
            <Token![mut]>::default().to_tokens(tokens);
        }
        <Token![self]>::default().to_tokens(tokens);
        <Token![.]>::default().to_tokens(tokens);
        member.to_tokens(tokens);
    }
}

pub(crate) fn visit(input: &Input<'_>) -> TokenStream {
    let (body, cursor) = (body(input, Place::Shared), cursor());
    quote! {
        fn visit<'__a>(&'__a self, #cursor: &mut __peft::Cursor<'__a>) {
            #body
        }
    }
}

pub(crate) fn visit_mut(input: &Input<'_>) -> TokenStream {
    let (body, cursor) = (body(input, Place::Exclusive), cursor());
    quote! {
        fn visit_mut<'__a>(&'__a mut self, #cursor: &mut __peft::CursorMut<'__a>) {
            #body
        }
    }
}

/// The cursor's name, which user code cannot see.
fn cursor() -> Ident {
    Ident::new("__cursor", at(Span::call_site()))
}

fn body<'i>(input: &'i Input<'_>, place: fn(&'i Member) -> Place<'i>) -> TokenStream {
    match &input.body {
        Body::Struct(fields) => {
            let transparent = input.attrs.transparent.is_some();
            let visited = fields.iter().filter(|field| field.is_visited());
            calls(visited.map(|field| call(field, &place(&field.member), transparent)).collect())
        }
        Body::Enum(variants) if variants.is_empty() => quote!(match *self {}),
        Body::Enum(variants) => {
            let arms: TokenStream = variants.iter().map(arm).collect();
            quote!(match self { #arms })
        }
        Body::Union(_) => TokenStream::new(),
    }
}

fn arm(variant: &Variant<'_>) -> TokenStream {
    let ident = variant.ident;
    let bound: Vec<(&Field, Ident)> = variant
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
    let calls =
        calls(bound.iter().map(|(field, name)| call(field, &Place::Bound(name), transparent)).collect());
    quote! {
        Self::#ident { #(#patterns,)* .. } => { #calls }
    }
}

/// The calls as one statement: a chain of calls is less work for the compiler than a statement for each.
fn calls(calls: TokenStream) -> TokenStream {
    if calls.is_empty() {
        return calls;
    }
    let cursor = cursor();
    quote!(#cursor #calls;)
}

/// One call on the cursor, with the span of the field's type: that is where an unknown type is reported.
fn call(field: &Field, place: &Place<'_>, transparent: bool) -> TokenStream {
    let span = field.ty.span;
    if transparent || field.attrs.flatten.is_some() {
        return quote_spanned!(span=> .flatten(#place));
    }
    let segment = field.segment();
    if field.attrs.blocks.is_some() {
        return quote_spanned!(span=> .blocks(#segment, #place));
    }
    quote_spanned!(span=> .field(#segment, #place))
}
