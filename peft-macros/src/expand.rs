//! The stages of the derive: parse, check, print; or a stub and the errors.

use proc_macro2::TokenStream;
use quote::quote;
use syn::DeriveInput;

use crate::ast::Input;
use crate::diag::Diagnostics;
use crate::scope::in_scope;
use crate::{bound, check, declared, fallback, schema, visit};

/// The expansion of `#[derive(Injectable)]`.
pub(crate) fn expand(tokens: TokenStream) -> TokenStream {
    match syn::parse2::<DeriveInput>(tokens) {
        Ok(input) => expand_input(&input),
        Err(error) => error.into_compile_error(),
    }
}

fn expand_input(original: &DeriveInput) -> TokenStream {
    let mut diagnostics = Diagnostics::new();
    let input = Input::from_syn(original, &mut diagnostics);
    check::check(&input, &mut diagnostics);
    match diagnostics.finish() {
        Ok(()) => print(&input),
        Err(error) => {
            let errors = error.into_compile_error();
            let stub = fallback::stub(&input);
            quote! { #errors #stub }
        }
    }
}

fn print(input: &Input<'_>) -> TokenStream {
    let name = &input.original.ident;
    let (impl_generics, type_generics, _) = input.original.generics.split_for_impl();
    let where_clause = bound::where_clause(input);
    let schema = schema::schema(input);
    let declared = declared::declared(input);
    let model_type = declared::model_type(input);
    let checks = declared::checks(input);
    let visit = visit::visit(input);
    let visit_mut = visit::visit_mut(input);
    in_scope(
        input,
        &quote! {
            #[automatically_derived]
            impl #impl_generics __peft::Injectable for #name #type_generics #where_clause {
                const SCHEMA: &'static __peft::Schema = #schema;
                #declared
                #model_type
                #visit
                #visit_mut
            }
            #checks
        },
    )
}
