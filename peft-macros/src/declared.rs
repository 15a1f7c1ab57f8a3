//! Prints what attributes declare, and the compile-time checks of the names in them.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::{Expr, GenericParam, LitStr};

use crate::ast::{Body, Input};
use crate::attr::LoraAttr;
use crate::value::at;

/// `const DECLARED`, where the type declares anything.
pub(crate) fn declared(input: &Input<'_>) -> TokenStream {
    let (targets, feedforward) = (&input.attrs.targets, &input.attrs.feedforward);
    let embeddings = [&input.attrs.input_embedding, &input.attrs.output_embedding];
    let nothing =
        targets.is_empty() && feedforward.is_empty() && embeddings.iter().all(|name| name.is_none());
    if nothing && input.attrs.lora.is_none() {
        return inherited(input);
    }
    let [input_embedding, output_embedding] = embeddings.map(optional);
    let lora = match &input.attrs.lora {
        Some(lora) => {
            let lora = lora_values(&lora.value);
            quote!(__peft::Option::Some(#lora))
        }
        None => quote!(__peft::Option::None),
    };
    // A generic type has no single schema to check at its definition: the names are checked where the constant is used.
    let checks = if is_concrete(input) { TokenStream::new() } else { check_each(input, &quote!(Self)) };
    quote! {
        const DECLARED: __peft::Declared = {
            #checks
            __peft::Declared {
                targets: &[#(#targets),*],
                feedforward: &[#(#feedforward),*],
                lora: #lora,
                input_embedding: #input_embedding,
                output_embedding: #output_embedding,
            }
        };
    }
}

fn optional(name: &Option<LitStr>) -> TokenStream {
    match name {
        Some(name) => quote!(__peft::Option::Some(#name)),
        None => quote!(__peft::Option::None),
    }
}

/// The method that says which of transformers' model types this is, if the type declares it.
pub(crate) fn model_type(input: &Input<'_>) -> TokenStream {
    let value = match (&input.attrs.model_type, &input.body, input.attrs.transparent) {
        (Some(expression @ Expr::Lit(_)), ..) => quote!(__peft::Option::Some(#expression)),
        (Some(expression), ..) => {
            quote!(__peft::Option::Some(__peft::AsRef::<str>::as_ref(&#expression)))
        }
        (None, Body::Struct(fields), Some(_)) => {
            let member = fields.iter().find(|field| field.is_visited()).map(|field| &field.member);
            quote!(__peft::Injectable::model_type(&self.#member))
        }
        _ => return TokenStream::new(),
    };
    quote! {
        fn model_type(&self) -> __peft::Option<&str> {
            #value
        }
    }
}

/// A transparent struct declares what its only field declares.
fn inherited(input: &Input<'_>) -> TokenStream {
    match (&input.body, input.attrs.transparent) {
        (Body::Struct(fields), Some(_)) => {
            let ty = fields.iter().find(|field| field.is_visited()).map(|field| &field.ty);
            quote! {
                const DECLARED: __peft::Declared = <#ty as __peft::Injectable>::DECLARED;
            }
        }
        _ => TokenStream::new(),
    }
}

fn lora_values(lora: &LoraAttr) -> TokenStream {
    let rank = lora.rank.map_or(8, |rank| rank.value);
    #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
    let alpha = lora.alpha.map_or(rank as f64, |alpha| alpha.value);
    let dropout = lora.dropout.map_or(0.0, |dropout| dropout.value);
    let rslora = lora.rslora;
    let bias = match lora.bias.as_ref().map(LitStr::value).as_deref() {
        Some("all") => quote!(All),
        Some("lora_only") => quote!(LoraOnly),
        _ => quote!(None),
    };
    quote! {
        __peft::DeclaredLora {
            rank: #rank,
            alpha: #alpha,
            dropout: #dropout,
            rslora: #rslora,
            bias: __peft::Bias::#bias,
        }
    }
}

/// The checks of a concrete type: items, which `cargo check` evaluates, each with the span of its name.
pub(crate) fn checks(input: &Input<'_>) -> TokenStream {
    if !is_concrete(input) {
        return TokenStream::new();
    }
    let name = &input.original.ident;
    // In the type of a constant, this is the only lifetime that can be named.
    let lifetimes = input.original.generics.lifetimes().map(|_| quote!('static));
    let ty = quote!(#name<#(#lifetimes),*>);
    let checks = checked_names(input).map(|target| {
        let check = check_target(target, &ty);
        quote_spanned!(at(target.span())=> const _: () = #check;)
    });
    quote!(#(#checks)*)
}

fn check_each(input: &Input<'_>, ty: &TokenStream) -> TokenStream {
    let checks = checked_names(input).map(|target| check_target(target, ty));
    quote!(#(#checks;)*)
}

/// The names that must be those of layers.
fn checked_names<'i>(input: &'i Input<'_>) -> impl Iterator<Item = &'i LitStr> {
    let attrs = &input.attrs;
    attrs.targets.iter().chain(&attrs.input_embedding).chain(&attrs.output_embedding)
}

fn check_target(target: &LitStr, ty: &TokenStream) -> TokenStream {
    quote_spanned! {at(target.span())=>
        __peft::check_target(<#ty as __peft::Injectable>::SCHEMA, #target)
    }
}

/// Whether the type has no generic parameters other than lifetimes.
fn is_concrete(input: &Input<'_>) -> bool {
    input.original.generics.params.iter().all(|parameter| matches!(parameter, GenericParam::Lifetime(_)))
}
