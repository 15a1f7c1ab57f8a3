//! The where-clause of the impl: a pure function of the generics and the fields.

use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{Ident, Type};

use crate::ast::Input;
use crate::value::at;

/// The type's own where-clause, and either the user's bound or one `Field: Injectable` for each field type that names a
/// type parameter.
///
/// Whole field types are bounded, not parameters: `Adapted<L>` needs a layer for `L`, not another `Injectable`.
pub(crate) fn where_clause(input: &Input<'_>) -> TokenStream {
    let generics = &input.original.generics;
    let own =
        generics.where_clause.iter().flat_map(|clause| &clause.predicates).map(ToTokens::to_token_stream);
    let mut predicates: Vec<TokenStream> = own.collect();
    match &input.attrs.bound {
        Some(bound) => predicates.extend(bound.iter().map(ToTokens::to_token_stream)),
        None => {
            let parameters: Vec<&Ident> = generics.type_params().map(|parameter| &parameter.ident).collect();
            let generic = input.all_fields().into_iter().filter(|field| field.is_visited());
            for ty in generic.map(|field| field.ty).filter(|ty| names_any(ty, &parameters)) {
                predicates.push(quote_spanned!(at(ty.span())=> #ty: __peft::__private::Injectable));
            }
        }
    }
    if predicates.is_empty() { TokenStream::new() } else { quote!(where #(#predicates),*) }
}

/// Whether the type's tokens contain one of the names.
fn names_any(ty: &Type, names: &[&Ident]) -> bool {
    fn search(tokens: TokenStream, names: &[&Ident]) -> bool {
        tokens.into_iter().any(|token| match token {
            TokenTree::Ident(ident) => names.iter().any(|name| **name == ident),
            TokenTree::Group(group) => search(group.stream(), names),
            TokenTree::Punct(_) | TokenTree::Literal(_) => false,
        })
    }
    !names.is_empty() && search(ty.to_token_stream(), names)
}
