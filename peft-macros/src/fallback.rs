//! The stub that is printed together with errors, so that one mistake does not cause an error for each use of the type.

use proc_macro2::TokenStream;
use quote::quote;

use crate::ast::Input;
use crate::scope::in_scope;

pub(crate) fn stub(input: &Input<'_>) -> TokenStream {
    let name = &input.original.ident;
    let text = name.to_string();
    let (impl_generics, type_generics, where_clause) = input.original.generics.split_for_impl();
    in_scope(
        input,
        &quote! {
            #[automatically_derived]
            impl #impl_generics __peft::Injectable for #name #type_generics #where_clause {
                const SCHEMA: &'static __peft::Schema = &__peft::Schema::unknown(#text);
                fn visit<'__a>(&'__a self, _: &mut __peft::Cursor<'__a>) {}
                fn visit_mut<'__a>(&'__a mut self, _: &mut __peft::CursorMut<'__a>) {}
            }
        },
    )
}
