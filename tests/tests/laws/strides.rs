//! What holds for inputs of any strides, on every path of a forward pass.

use candle_core::Tensor;
use peft_runtime::no_grad;
use peft_runtime::prelude::*;
use peft_tests::close::assert_close;
use peft_tests::float_types::every_holding;
use peft_tests::methods::every_pair;
use peft_tests::specimen::Specimen;

use crate::{NAME, acting, named};

/// The same values with the last two dimensions exchanged in memory, as after a transpose.
fn turned(x: &Tensor) -> Tensor {
    let (first, second) = (x.rank() - 2, x.rank() - 1);
    let turned = x.transpose(first, second).unwrap().contiguous().unwrap();
    turned.transpose(first, second).unwrap()
}

/// The outputs without and with a graph, and with an adapter for some of the rows.
fn outputs(model: &Specimen, x: &Tensor) -> Vec<Tensor> {
    let rows = [NAME, "__base__", NAME];
    let mixed = model.with_adapter_rows(&rows, |model| model.forward(x));
    let plain = [model.forward(x).unwrap(), no_grad(|| model.forward(x)).unwrap()];
    // Rows with adapters of their own are refused where one is merged.
    plain.into_iter().chain(mixed.ok().map(|mixed| mixed.unwrap())).collect()
}

#[test]
fn a_turned_input_gives_what_its_contiguous_copy_gives_on_every_path() {
    let in_every_holding = |holding| every_pair().map(move |(kind, method)| (holding, kind, method));
    for (holding, kind, method) in every_holding().flat_map(in_every_holding) {
        let what = named(kind, &method, holding);
        let (mut model, x) = acting(kind, &method, holding);
        let turned = turned(&x);
        assert!(!turned.is_contiguous(), "{what}");
        let check = |model: &Specimen, path: &str| {
            let (found, expected) = (outputs(model, &turned), outputs(model, &x));
            assert_eq!(found.len(), expected.len(), "{what}, {path}");
            for (found, expected) in found.iter().zip(&expected) {
                assert_close(found, expected, holding.float.specimen, format_args!("{what}, {path}"));
            }
        };
        check(&model, "active");
        model.disable_adapters();
        check(&model, "disabled");
        model.enable_adapters();
        if method.merges(kind) {
            model.merge_adapters(&MergeOptions::active()).unwrap();
            check(&model, "merged");
            model.unmerge_adapters().unwrap();
        }
        model.unload().unwrap();
        let (found, expected) = (model.forward(&turned).unwrap(), model.forward(&x).unwrap());
        assert_close(&found, &expected, holding.float.specimen, format_args!("{what}, without adapters"));
    }
}
