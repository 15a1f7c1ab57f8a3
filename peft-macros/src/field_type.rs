//! The type of a field, read once.
//!
//! Inside the compiler, a [`TokenStream`] is a handle: copying, joining or walking one is a call to the compiler.
//! Tokens in a vector are the macro's own.

use std::fmt::Write as _;

use proc_macro2::{Group, Ident, Span, TokenStream, TokenTree};
use quote::ToTokens;
use syn::Type;

use crate::value::at;

/// The type of a field, as the parts of the derive need it.
pub(crate) struct FieldType {
    tokens: Vec<TokenTree>,
    /// The span of the type, for generated code.
    pub(crate) span: Span,
    /// The type as text, the same for the same tokens.
    pub(crate) text: String,
}

impl FieldType {
    pub(crate) fn new(ty: &Type) -> Self {
        let tokens: Vec<TokenTree> = ty.to_token_stream().into_iter().collect();
        let mut text = String::new();
        append(&mut text, &tokens);
        let span = tokens.first().map_or_else(Span::call_site, TokenTree::span);
        Self { tokens, span: at(span), text }
    }

    /// The first token that names the type `own` itself: not one that follows `::`, which names a type of another
    /// module.
    pub(crate) fn named(&self, own: &Ident) -> Option<Span> {
        own_name(&self.tokens, own)
    }
}

impl ToTokens for FieldType {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        tokens.extend(self.tokens.iter().cloned());
    }
}

fn append(text: &mut String, tokens: &[TokenTree]) {
    for token in tokens {
        // Writing to a string does not fail.
        let _ = match token {
            TokenTree::Group(group) => {
                let _ = write!(text, "{:?}( ", group.delimiter());
                append(text, &inside(group));
                text.write_str(") ")
            }
            TokenTree::Ident(ident) => write!(text, "{ident} "),
            TokenTree::Punct(punct) => write!(text, "{} ", punct.as_char()),
            TokenTree::Literal(literal) => write!(text, "{literal} "),
        };
    }
}

fn inside(group: &Group) -> Vec<TokenTree> {
    group.stream().into_iter().collect()
}

fn own_name(tokens: &[TokenTree], own: &Ident) -> Option<Span> {
    let mut after_colon = false;
    for token in tokens {
        match token {
            TokenTree::Ident(ident) if !after_colon && (ident == own || ident == "Self") => {
                return Some(ident.span());
            }
            TokenTree::Group(group) => {
                if let Some(span) = own_name(&inside(group), own) {
                    return Some(span);
                }
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
        after_colon = matches!(token, TokenTree::Punct(punct) if punct.as_char() == ':');
    }
    None
}
