//! `targets!(Model; "q_proj", "mlp.down_proj")`: each name is checked against the model's schema.

use proc_macro2::{Group, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::parse::{Parse, ParseStream, Parser};
use syn::punctuated::Punctuated;
use syn::{Lit, LitStr, Path, Token, Type};

use crate::diag::Diagnostics;
use crate::value::{at, name_fault};

/// `path::to::runtime; Model; "a", "b"`.
struct Targets {
    runtime: Path,
    model: Type,
    names: Punctuated<Name, Token![,]>,
}

/// What is given as a name.
struct Name(Lit);

impl Parse for Name {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        input
            .parse()
            .map(Self)
            .map_err(|error| syn::Error::new(error.span(), "expected a name in double quotes"))
    }
}

impl Parse for Targets {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let runtime = input.call(Path::parse_mod_style)?;
        input.parse::<Token![;]>()?;
        let model = input.parse().map_err(|error| {
            syn::Error::new(error.span(), "expected a model type and names: `targets!(Model; \"q_proj\")`")
        })?;
        input.parse::<Token![;]>().map_err(|error| {
            syn::Error::new(error.span(), "expected `;` after the model type: `targets!(Model; \"q_proj\")`")
        })?;
        Ok(Self { runtime, model, names: Punctuated::parse_terminated(input)? })
    }
}

pub(crate) fn expand(tokens: TokenStream) -> TokenStream {
    match Targets::parse.parse2(tokens) {
        Ok(targets) => print(&targets),
        Err(error) => error.into_compile_error(),
    }
}

fn print(targets: &Targets) -> TokenStream {
    let Targets { runtime, model, names } = targets;
    let mut diagnostics = Diagnostics::new();
    let is_empty = names.is_empty();
    let names: Vec<&LitStr> =
        names.iter().filter_map(|name| name_literal(&name.0, &mut diagnostics)).collect();
    if is_empty {
        diagnostics.error(Span::call_site(), "no target is named: `targets!(Model; \"q_proj\")`");
    }
    if let Err(error) = diagnostics.finish() {
        let errors = error.into_compile_error();
        return quote!({ #errors #runtime::__private::targets(&[]) });
    }
    let checks = names.iter().map(|name| {
        let runtime = relocated(runtime.to_token_stream(), name.span());
        let model = relocated(model.to_token_stream(), name.span());
        quote_spanned! {at(name.span())=>
            const _: () =
                #runtime::__private::check_target(<#model as #runtime::__private::Injectable>::SCHEMA, #name);
        }
    });
    quote!({ #(#checks)* #runtime::__private::targets(&[#(#names),*]) })
}

/// The same tokens with another span, so that an error in all of them is shown there.
fn relocated(tokens: TokenStream, place: Span) -> TokenStream {
    let relocate = |mut token: TokenTree| {
        if let TokenTree::Group(group) = &token {
            let mut inner = Group::new(group.delimiter(), relocated(group.stream(), place));
            inner.set_span(group.span().located_at(place));
            return TokenTree::Group(inner);
        }
        token.set_span(token.span().located_at(place));
        token
    };
    tokens.into_iter().map(relocate).collect()
}

fn name_literal<'a>(name: &'a Lit, diagnostics: &mut Diagnostics) -> Option<&'a LitStr> {
    let Lit::Str(name) = name else {
        diagnostics.error(name.span(), "expected a name in double quotes");
        return None;
    };
    if let Some(fault) = name_fault(&name.value(), true) {
        diagnostics.error(name.span(), fault);
        return None;
    }
    Some(name)
}
