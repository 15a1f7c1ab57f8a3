//! What holds for two adapters of one method on every layer kind.

use candle_core::{DType, Tensor};
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::float_types::{Holding, every_holding};
use peft_tests::methods::{Method, every_pair};
use peft_tests::specimen::{Kind, Specimen};
use peft_tests::tensors::randomise;

use crate::{NAME, acting, inject, named};

/// Specimens with two acting adapters of one method in a precision, for the methods that allow it and for which `holds`.
fn pairs(
    holding: Holding,
    holds: fn(Kind, &Method) -> bool,
) -> impl Iterator<Item = (String, Specimen, Tensor)> {
    let chosen = every_pair().filter(move |(kind, method)| method.pairs && holds(*kind, method));
    chosen.map(move |(kind, method)| {
        let (mut model, x) = acting(kind, &method, holding);
        inject(&mut model, &method, "other", holding);
        randomise(&mut model, "other", 0.3).unwrap();
        (named(kind, &method, holding), model, x)
    })
}

/// The precisions in which two adapters are looked at.
fn holdings_of_pairs() -> impl Iterator<Item = Holding> {
    every_holding().filter(|holding| holding.dtype() != DType::F32)
}

#[test]
fn several_adapters_add_up_and_a_clone_shares_their_values() {
    let additive =
        |holding: Holding| pairs(holding, |_, method| method.additive).map(move |pair| (holding, pair));
    for (holding, (what, mut model, x)) in holdings_of_pairs().flat_map(additive) {
        let mut output = |names: &[&str]| {
            model.set_adapters(names).unwrap();
            model.forward(&x).unwrap()
        };
        let (first, second, both) = (output(&[NAME]), output(&["other"]), output(&[NAME, "other"]));
        let none = output(&[]);
        let sum = ((first + second).unwrap() - none).unwrap();
        // Four outputs, each rounded as two ways of computing one are.
        assert_close(&sum, &both, Tolerance::absolute(2.0 * holding.float.specimen.atol), &what);
        let copy = model.clone();
        model.set_adapter("other").unwrap();
        assert_eq!(
            copy.active_adapters(),
            Vec::<String>::new(),
            "{what}: a clone has its own active adapters"
        );
    }
}

#[test]
fn several_adapters_merge_to_what_they_compute_one_after_the_other() {
    let merging = |holding: Holding| {
        pairs(holding, |kind, method| method.merges(kind)).map(move |pair| (holding, pair))
    };
    for (holding, (what, mut model, x)) in holdings_of_pairs().flat_map(merging) {
        for order in [[NAME, "other"], ["other", NAME]] {
            model.set_adapters(&order).unwrap();
            let forward = model.forward(&x).unwrap();
            model.merge_adapters(&MergeOptions::active()).unwrap();
            let merged = model.forward(&x).unwrap();
            assert_close(&forward, &merged, holding.float.specimen, format_args!("{what}: {order:?}"));
            model.unmerge_adapters().unwrap();
        }
    }
}
