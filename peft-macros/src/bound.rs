//! The where-clause of the impl: a pure function of the generics and the fields.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned as _;

use crate::ast::Input;
use crate::value::at;

/// The type's own where-clause, and either the user's bound or one `Field: Injectable` for each visited field.
///
/// Whole field types are bounded, not parameters: `Adapted<L>` needs a layer for `L`, not another `Injectable`. Concrete
/// field types are bounded too, so that an unknown one is reported once, at the field, and not once for each use of it.
pub(crate) fn where_clause(input: &Input<'_>) -> TokenStream {
    let own = input.original.generics.where_clause.iter().flat_map(|clause| &clause.predicates);
    let mut predicates: Vec<TokenStream> = own.map(ToTokens::to_token_stream).collect();
    match &input.attrs.bound {
        Some(bound) => predicates.extend(bound.iter().map(ToTokens::to_token_stream)),
        None => {
            let mut known = Vec::new();
            for ty in input.all_fields().into_iter().filter(|field| field.is_visited()).map(|field| field.ty)
            {
                let text = ty.to_token_stream().to_string();
                if !known.contains(&text) {
                    predicates.push(quote_spanned!(at(ty.span())=> #ty: __peft::__private::Injectable));
                    known.push(text);
                }
            }
        }
    }
    if predicates.is_empty() { TokenStream::new() } else { quote!(where #(#predicates),*) }
}
