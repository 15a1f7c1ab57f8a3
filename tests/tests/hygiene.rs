//! The derive's output under hostile conditions: no prelude, shadowed names, every lint an error.

#![no_implicit_prelude]
#![deny(warnings, unused_qualifications, missing_docs, trivial_casts, clippy::all, clippy::pedantic)]
#![expect(dead_code, reason = "the types have the derive and are never constructed")]
#![forbid(unsafe_code)]

// The same crate under another name.
extern crate peft_runtime as renamed_peft;

use ::peft_runtime::Injectable;

type Adapted = ::peft_runtime::Adapted<::candle_nn::Linear>;

mod shadows {
    //! Names of the prelude with a different meaning.
    pub(crate) struct Option;
    pub(crate) struct Result;
    pub(crate) struct Vec;
    pub(crate) struct Some;
    pub(crate) struct Box;
    pub(crate) struct Schema;
    pub(crate) struct Field;
}

#[expect(unused_imports, reason = "they are here to be in the way")]
use shadows::{Box, Field, Option, Result, Schema, Some, Vec};

#[derive(Injectable)]
#[peft(target = ["type", "old"], lora(rank = 4, alpha = 8.0, dropout = 0.1, rslora))]
struct Everything<'a, const N: usize> {
    name: &'a str,
    r#type: Adapted,
    #[deprecated = "it is part of the model all the same"]
    old: Adapted,
    #[peft(rename = "attention.self", rank = 2)]
    renamed: Adapted,
    #[peft(flatten)]
    inner: Inner,
    list: [Adapted; N],
    maybe: ::core::option::Option<::std::boxed::Box<Adapted>>,
    pair: (Adapted, f64),
    map: ::std::collections::BTreeMap<::std::string::String, Adapted>,
    steps: usize,
}

#[derive(Injectable)]
struct Inner {
    flat: Adapted,
}

#[derive(Injectable)]
struct Unit;

#[derive(Injectable)]
struct Tuple(Adapted, #[peft(rename = "second")] Adapted);

#[derive(Injectable)]
#[peft(transparent)]
struct Transparent(Inner);

#[derive(Injectable)]
enum Choice<L> {
    Nothing,
    Newtype(Inner),
    Named {
        first: L,
        #[peft(skip)]
        _second: ::std::thread::ThreadId,
    },
    Unnamed(L, u8),
}

#[derive(Injectable)]
enum Never {}

#[derive(Injectable)]
#[peft(bound = "L: ::peft_runtime::layer::BaseLayer")]
struct Bounded<L> {
    layer: ::peft_runtime::Adapted<L>,
}

/// The runtime under another name, and reached by a path of this crate.
mod elsewhere {
    pub(crate) use ::renamed_peft as peft;
}

#[derive(Injectable)]
#[peft(crate = "renamed_peft", target = "layer")]
struct Renamed {
    layer: Adapted,
}

#[derive(Injectable)]
#[peft(crate = "crate::elsewhere::peft")]
struct ByPath {
    layer: Adapted,
}

macro_rules! declare {
    ($name:ident, $field:ident: $type:ty) => {
        #[derive(Injectable)]
        struct $name {
            $field: $type,
        }
    };
}

declare!(ByMacro, layer: Adapted);

fn paths<M: Injectable>() -> ::std::vec::Vec<::std::string::String> {
    M::SCHEMA.leaf_paths()
}

#[test]
fn every_shape_of_type_derives() {
    use ::std::assert_eq;

    assert_eq!(
        paths::<Everything<'static, 2>>(),
        ["type", "old", "attention.self", "flat", "list.*", "maybe", "pair.0", "map.*"]
    );
    assert_eq!(paths::<Tuple>(), ["0", "second"]);
    assert_eq!(paths::<Transparent>(), ["flat"]);
    assert_eq!(paths::<Choice<Adapted>>(), ["flat", "first", "0"]);
    assert_eq!(paths::<Bounded<::candle_nn::Linear>>(), ["layer"]);
    for declared in [paths::<Renamed>(), paths::<ByPath>(), paths::<ByMacro>()] {
        assert_eq!(declared, ["layer"]);
    }
    ::std::assert!(paths::<Unit>().is_empty() && paths::<Never>().is_empty());
    let _ = (::peft_runtime::targets!(Inner; "flat"), ::renamed_peft::targets!(Renamed; "layer"));
}
