//! The derive and the target macro of `peft-runtime`, which re-exports both; depend on that crate instead.

mod ast;
mod attr;
mod bound;
mod check;
mod declared;
mod diag;
mod expand;
mod fallback;
mod field_type;
mod schema;
mod scope;
mod symbol;
mod targets;
#[cfg(test)]
mod tests;
mod value;
mod visit;

use proc_macro::TokenStream;

#[doc = include_str!("../docs/injectable.md")]
#[proc_macro_derive(Injectable, attributes(peft))]
pub fn derive_injectable(input: TokenStream) -> TokenStream {
    expand::expand(input.into()).into()
}

/// What `peft_runtime::targets!` calls, with the path of that crate first.
#[doc(hidden)]
#[proc_macro]
pub fn targets_in(input: TokenStream) -> TokenStream {
    targets::expand(input.into()).into()
}
