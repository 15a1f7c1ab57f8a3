//! The where-clause of the impl: a pure function of the generics and the fields.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};

use crate::ast::Input;
use crate::field_type::FieldType;

/// The type's own where-clause, and either the user's bound or one `Field: Injectable` for each visited field.
///
/// Whole field types are bounded, not parameters: `Adapted<L>` needs a layer for `L`, not another `Injectable`. Concrete
/// field types are bounded too, so that an unknown one is reported once, at the field, and not once for each use of it.
pub(crate) fn where_clause(input: &Input<'_>) -> TokenStream {
    let own = input.original.generics.where_clause.iter().flat_map(|clause| &clause.predicates);
    let bounds: TokenStream = match &input.attrs.bound {
        Some(bound) => quote!(#(#bound,)*),
        None => distinct_types(input).map(|ty| quote_spanned!(ty.span=> #ty: __peft::Injectable,)).collect(),
    };
    let predicates = quote!(#(#own,)* #bounds);
    if predicates.is_empty() { predicates } else { quote!(where #predicates) }
}

/// The types of the visited fields, each once.
fn distinct_types<'i>(input: &'i Input<'_>) -> impl Iterator<Item = &'i FieldType> {
    let mut known = Vec::new();
    let visited = input.all_fields().into_iter().filter(|field| field.is_visited());
    visited.map(|field| &field.ty).filter(move |ty| {
        let is_new = !known.contains(&ty.text.as_str());
        known.push(&ty.text);
        is_new
    })
}
