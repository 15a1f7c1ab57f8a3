//! The attributes of a type and of a field, as plain data.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::quote;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream, Parser};
use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, Ident, LitStr, Path, PathArguments, Token, WherePredicate, parenthesized};

use crate::diag::{Diagnostics, suggestion};
use crate::symbol::{LORA_KEYS, Place, Symbol, foreign};
use crate::value::{self, Spanned};

/// The attributes of a struct or enum.
#[derive(Default)]
pub(crate) struct TypeAttrs {
    pub(crate) targets: Vec<LitStr>,
    pub(crate) feedforward: Vec<LitStr>,
    pub(crate) lora: Option<Spanned<LoraAttr>>,
    pub(crate) model_type: Option<Expr>,
    pub(crate) input_embedding: Option<LitStr>,
    pub(crate) output_embedding: Option<LitStr>,
    pub(crate) transparent: Option<Span>,
    pub(crate) bound: Option<Vec<WherePredicate>>,
    pub(crate) runtime: Option<Path>,
}

/// The values of `lora(…)`.
#[derive(Clone, Default)]
pub(crate) struct LoraAttr {
    pub(crate) rank: Option<Spanned<usize>>,
    pub(crate) alpha: Option<Spanned<f64>>,
    pub(crate) dropout: Option<Spanned<f64>>,
    pub(crate) rslora: bool,
    pub(crate) bias: Option<LitStr>,
}

/// The attributes of a field.
#[derive(Default)]
pub(crate) struct FieldAttrs {
    pub(crate) rename: Option<LitStr>,
    pub(crate) flatten: Option<Span>,
    pub(crate) skip: Option<Span>,
    pub(crate) rank: Option<Spanned<usize>>,
    pub(crate) blocks: Option<Span>,
}

impl TypeAttrs {
    pub(crate) fn from_attributes(attributes: &[Attribute], diagnostics: &mut Diagnostics) -> Self {
        let mut attrs = Self::default();
        let mut seen = Vec::new();
        each_item(attributes, Place::Type, &mut seen, diagnostics, |symbol, span, input| {
            match symbol {
                Symbol::Target => attrs.targets.extend(value::strings(input)?),
                Symbol::Feedforward => attrs.feedforward.extend(value::strings(input)?),
                Symbol::Lora => attrs.lora = Some(Spanned::new(lora(input)?, span)),
                Symbol::ModelType => attrs.model_type = Some(value::expression(input)?),
                Symbol::InputEmbedding => attrs.input_embedding = Some(value::string(input)?),
                Symbol::OutputEmbedding => attrs.output_embedding = Some(value::string(input)?),
                Symbol::Transparent => attrs.transparent = Some(span),
                Symbol::Bound => attrs.bound = Some(bound(&value::string(input)?)?),
                Symbol::Crate => attrs.runtime = Some(crate_path(&value::string(input)?)?),
                Symbol::Rename | Symbol::Flatten | Symbol::Skip | Symbol::Rank | Symbol::Blocks => {}
            }
            Ok(())
        });
        attrs
    }

    /// The path of the runtime crate.
    pub(crate) fn runtime_path(&self) -> TokenStream {
        match &self.runtime {
            Some(path) => quote!(#path),
            None => quote!(::peft_runtime),
        }
    }
}

impl FieldAttrs {
    pub(crate) fn from_attributes(attributes: &[Attribute], diagnostics: &mut Diagnostics) -> Self {
        let mut attrs = Self::default();
        let mut seen = Vec::new();
        each_item(attributes, Place::Field, &mut seen, diagnostics, |symbol, span, input| {
            match symbol {
                Symbol::Rename => attrs.rename = Some(value::string(input)?),
                Symbol::Flatten => attrs.flatten = Some(span),
                Symbol::Skip => attrs.skip = Some(span),
                Symbol::Rank => attrs.rank = Some(value::whole_number(input)?),
                Symbol::Blocks => attrs.blocks = Some(span),
                _ => {}
            }
            Ok(())
        });
        attrs
    }
}

/// Calls `read` for every item of every `#[peft(…)]`; a wrong item is recorded and skipped, and the next one is read.
fn each_item(
    attributes: &[Attribute],
    place: Place,
    seen: &mut Vec<(Symbol, Span)>,
    diagnostics: &mut Diagnostics,
    mut read: impl FnMut(Symbol, Span, ParseStream<'_>) -> syn::Result<()>,
) {
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("peft")) {
        let parser = |input: ParseStream<'_>| {
            while !input.is_empty() {
                let item =
                    item_symbol(input, place, seen).and_then(|(symbol, span)| read(symbol, span, input));
                if let Err(error) = item.and_then(|()| expect_end_of_item(input)) {
                    diagnostics.push(error);
                    skip_item(input);
                }
                if !input.is_empty() {
                    input.parse::<Token![,]>()?;
                }
            }
            Ok(())
        };
        let list = attribute.meta.require_list().map(|list| list.tokens.clone());
        let list = list
            .map_err(|error| syn::Error::new(error.span(), "expected `#[peft(…)]` with attributes inside"));
        match list.and_then(|tokens| parser.parse2(tokens)) {
            Ok(()) => {}
            Err(error) => diagnostics.push(error),
        }
    }
}

/// The word at the beginning of an item, if it belongs here and has not occurred before.
fn item_symbol(
    input: ParseStream<'_>,
    place: Place,
    seen: &mut Vec<(Symbol, Span)>,
) -> syn::Result<(Symbol, Span)> {
    // `crate` is a keyword, but also an item.
    let ident = input.call(Ident::parse_any)?;
    let (word, span) = (ident.to_string(), ident.span());
    let Some(symbol) = Symbol::find(&word) else {
        let help = match foreign(&word) {
            Some(help) => format!("; {help}"),
            None => suggestion(&word, &Symbol::words(place)),
        };
        return Err(syn::Error::new(span, format!("unknown attribute `{word}`{help}")));
    };
    if symbol.place() != place {
        let message = format!("`{word}` belongs on {}, not on {place}", symbol.place());
        return Err(syn::Error::new(span, message));
    }
    let repeatable = matches!(symbol, Symbol::Target | Symbol::Feedforward);
    if let Some((_, first)) = seen.iter().find(|(known, _)| *known == symbol && !repeatable) {
        let mut error = syn::Error::new(span, format!("duplicate attribute `{word}`; keep one of them"));
        error.combine(syn::Error::new(*first, format!("`{word}` is given here first")));
        return Err(error);
    }
    seen.push((symbol, span));
    Ok((symbol, span))
}

fn expect_end_of_item(input: ParseStream<'_>) -> syn::Result<()> {
    if input.is_empty() || input.peek(Token![,]) { Ok(()) } else { Err(input.error("expected `,`")) }
}

fn skip_item(input: ParseStream<'_>) {
    while !input.is_empty() && !input.peek(Token![,]) {
        if input.parse::<TokenTree>().is_err() {
            return;
        }
    }
}

fn lora(input: ParseStream<'_>) -> syn::Result<LoraAttr> {
    let content;
    parenthesized!(content in input);
    lora_values(&content).inspect_err(|_| {
        // Tokens left unread would cause a second error.
        let _ = content.parse::<TokenStream>();
    })
}

fn lora_values(content: ParseStream<'_>) -> syn::Result<LoraAttr> {
    let mut attr = LoraAttr::default();
    let mut seen: Vec<Ident> = Vec::new();
    while !content.is_empty() {
        let key = content.call(Ident::parse_any)?;
        if seen.contains(&key) {
            return Err(syn::Error::new(key.span(), format!("duplicate `{key}`; keep one of them")));
        }
        match key.to_string().as_str() {
            "rank" => attr.rank = Some(value::whole_number(content)?),
            "alpha" => attr.alpha = Some(value::number(content)?),
            "dropout" => attr.dropout = Some(value::number(content)?),
            "rslora" => attr.rslora = value::switch(content)?,
            "bias" => attr.bias = Some(value::string(content)?),
            word => {
                let help = match foreign(word) {
                    Some(help) if word == "r" => format!("; {help}"),
                    _ => suggestion(word, &LORA_KEYS),
                };
                return Err(syn::Error::new(key.span(), format!("unknown key `{word}` in `lora(…)`{help}")));
            }
        }
        seen.push(key);
        if !content.is_empty() {
            content.parse::<Token![,]>()?;
        }
    }
    Ok(attr)
}

/// The predicates of a where-clause, without the word `where`.
fn bound(text: &LitStr) -> syn::Result<Vec<WherePredicate>> {
    let parser = Punctuated::<WherePredicate, Token![,]>::parse_terminated;
    match text.parse_with(parser) {
        Ok(predicates) => Ok(predicates.into_iter().collect()),
        Err(error) => Err(syn::Error::new(
            text.span(),
            format!("`bound` is not a where-clause ({error}); write it without `where`"),
        )),
    }
}

/// A plain module path; names of other crates get a leading `::`.
fn crate_path(text: &LitStr) -> syn::Result<Path> {
    let wrong =
        || syn::Error::new(text.span(), "`crate` is a path to `peft_runtime`, such as \"crate::peft\"");
    let mut path: Path = text.parse_with(Path::parse).map_err(|_| wrong())?;
    let plain = path.segments.iter().all(|segment| matches!(segment.arguments, PathArguments::None));
    let Some(first) = path.segments.first().map(|segment| segment.ident.to_string()) else {
        return Err(wrong());
    };
    if !plain || first == "Self" {
        return Err(wrong());
    }
    if path.leading_colon.is_none() && !matches!(first.as_str(), "crate" | "self" | "super") {
        path.leading_colon = Some(Token![::](text.span()));
    }
    Ok(path)
}
