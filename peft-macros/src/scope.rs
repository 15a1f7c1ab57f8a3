//! The block around what the derive prints.

use proc_macro2::TokenStream;
use quote::quote;

use crate::ast::Input;

/// Wraps items so that they can name what they need from the runtime by short paths that are not visible outside.
pub(crate) fn in_scope(input: &Input<'_>, items: &TokenStream) -> TokenStream {
    let runtime = input.attrs.runtime_path();
    quote! {
        #[allow(unused_imports, deprecated, reason = "an empty type needs no names; a deprecated field counts too")]
        const _: () = {
            use #runtime::__private as __peft;
            #items
        };
    }
}
