//! Values of attributes, with their spans.

use proc_macro2::Span;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Expr, Lit, LitBool, LitStr, Token, bracketed, token};

/// A value and the span of the token it came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spanned<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
}

impl<T> Spanned<T> {
    pub(crate) fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }
}

/// The span of a user's token, for generated code: errors point there, and lints know that nobody wrote the code.
pub(crate) fn at(span: Span) -> Span {
    Span::mixed_site().located_at(span)
}

/// `= "one"` or `= ["one", "two"]`.
pub(crate) fn strings(input: ParseStream<'_>) -> syn::Result<Vec<LitStr>> {
    input.parse::<Token![=]>()?;
    if input.peek(token::Bracket) {
        let content;
        bracketed!(content in input);
        let list = Punctuated::<LitStr, Token![,]>::parse_terminated(&content)?;
        return Ok(list.into_iter().collect());
    }
    Ok(vec![string_literal(input)?])
}

/// `= "text"`.
pub(crate) fn string(input: ParseStream<'_>) -> syn::Result<LitStr> {
    input.parse::<Token![=]>()?;
    string_literal(input)
}

fn string_literal(input: ParseStream<'_>) -> syn::Result<LitStr> {
    input.parse().map_err(|error| syn::Error::new(error.span(), "expected a string in double quotes"))
}

/// `= "text"` or `= self.field`.
pub(crate) fn expression(input: ParseStream<'_>) -> syn::Result<Expr> {
    input.parse::<Token![=]>()?;
    let expected = |span| syn::Error::new(span, "expected a string in double quotes, or `self.field`");
    let expression: Expr = input.parse().map_err(|error: syn::Error| expected(error.span()))?;
    match &expression {
        Expr::Lit(literal) if !matches!(literal.lit, Lit::Str(_)) => Err(expected(literal.lit.span())),
        _ => Ok(expression),
    }
}

/// `= 8`.
pub(crate) fn whole_number(input: ParseStream<'_>) -> syn::Result<Spanned<usize>> {
    input.parse::<Token![=]>()?;
    match Lit::parse(input)? {
        Lit::Int(number) => Ok(Spanned::new(number.base10_parse()?, number.span())),
        other => Err(syn::Error::new(other.span(), "expected a whole number")),
    }
}

/// `= 16` or `= 0.1`, with or without a sign.
pub(crate) fn number(input: ParseStream<'_>) -> syn::Result<Spanned<f64>> {
    input.parse::<Token![=]>()?;
    let negative = input.parse::<Option<Token![-]>>()?.is_some();
    let (value, span) = match Lit::parse(input)? {
        Lit::Int(number) => (number.base10_parse::<f64>()?, number.span()),
        Lit::Float(number) => (number.base10_parse::<f64>()?, number.span()),
        other => return Err(syn::Error::new(other.span(), "expected a number")),
    };
    Ok(Spanned::new(if negative { -value } else { value }, span))
}

/// Nothing, which means true, or `= true` or `= false`.
pub(crate) fn switch(input: ParseStream<'_>) -> syn::Result<bool> {
    if input.parse::<Option<Token![=]>>()?.is_none() {
        return Ok(true);
    }
    Ok(input.parse::<LitBool>()?.value)
}

/// What is wrong with a dotted name, if anything.
pub(crate) fn name_fault(name: &str, allow_wildcard: bool) -> Option<String> {
    if name.is_empty() {
        return Some("the name is empty".to_owned());
    }
    for segment in name.split('.') {
        if segment.is_empty() {
            return Some(format!("`{name}` has an empty part between its dots"));
        }
        if segment == "*" && allow_wildcard {
            continue;
        }
        if let Some(wrong) = segment.chars().find(|c| !(c.is_alphanumeric() || matches!(c, '_' | '-'))) {
            return Some(format!("`{wrong}` cannot be part of a module's name"));
        }
    }
    None
}
