//! Adapters that are read without a model: what they report about their layers.

use candle_core::{DType, Tensor};
use peft_runtime::prelude::*;
use peft_runtime::{StoredAdapter, StoredKind, StoredLayer};
use peft_tests::methods::{Method, WeightChange, every_pair};
use peft_tests::specimen::{Kind, Specimen};
use peft_tests::tensors::randomise;

/// The adapter's only layer as the file has it, and what merging adds to the weight, in double precision.
fn read(base: &Specimen, method: &Method) -> (StoredLayer, Tensor) {
    let mut model = base.clone();
    model.inject_adapter(&*method.config(), "default").unwrap();
    randomise(&mut model, "default", 0.3).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "default").unwrap();
    let mut layers = StoredAdapter::open(folder.path()).unwrap().layers().unwrap();
    let before = model.base_state_dict()["layer.weight"].clone();
    model.merge_adapters(&MergeOptions::active()).unwrap();
    let after = model.merged_state_dict()["layer.weight"].clone();
    assert_eq!(layers.len(), 1, "{}", method.name);
    (layers.remove(0), (after - before).unwrap())
}

fn inner(a: &Tensor, b: &Tensor) -> f64 {
    (a * b).unwrap().sum_all().unwrap().to_scalar().unwrap()
}

/// Methods whose update is a matrix that is added to the weight.
fn adding() -> impl Iterator<Item = (Kind, Method)> {
    every_pair().filter(|(kind, method)| {
        method.additive
            && method.saves
            && method.merges(*kind)
            && !method.trains_biases
            && method.weight == WeightChange::Kept
    })
}

#[test]
fn the_norm_of_an_update_is_that_of_what_merging_adds_to_the_weight() {
    for (kind, method) in adding() {
        let base = Specimen::new(kind, DType::F64).unwrap();
        let (layer, added) = read(&base, &method);
        let (found, expected) = (layer.update_norm().unwrap().unwrap(), inner(&added, &added).sqrt());
        assert!(
            (found - expected).abs() < 1e-5 * expected,
            "{} on {kind:?}: {found} {expected}",
            method.name
        );
        assert!(layer.elements() > 0 && layer.path.as_str() == "layer");
    }
}

#[test]
fn two_updates_differ_by_as_much_as_what_they_add_to_the_weight() {
    let find = |name: &str| *peft_tests::methods::METHODS.iter().find(|method| method.name == name).unwrap();
    let lora = find("lora");
    for (kind, method) in adding().filter(|(kind, _)| !kind.is_embedding() && *kind != Kind::GroupedConv2d) {
        let what = format!("{} on {kind:?}", method.name);
        let base = Specimen::new(kind, DType::F64).unwrap();
        let [(first, a), (second, b), (other, c)] =
            [&method, &method, &lora].map(|method| read(&base, method));
        for ((first, a), (second, b)) in [((&first, &a), (&second, &b)), ((&first, &a), (&other, &c))] {
            let (distance, cosine) = first.update_difference(second).unwrap().expect(&what);
            let apart = (a - b).unwrap();
            let expected = (inner(&apart, &apart).sqrt(), inner(a, b) / (inner(a, a) * inner(b, b)).sqrt());
            assert!((distance - expected.0).abs() < 1e-5 * expected.0, "{what}: {distance} {expected:?}");
            assert!((cosine - expected.1).abs() < 1e-5, "{what}: {cosine} {expected:?}");
        }
    }
}

#[test]
fn a_layer_is_called_by_its_method() {
    for (name, label) in
        [("lora", "LoRA"), ("dora", "DoRA"), ("adalora", "AdaLoRA"), ("loha", "LoHa"), ("lokr", "LoKr")]
    {
        let (kind, method) = every_pair().find(|(_, method)| method.name == name).unwrap();
        let (layer, _) = read(&Specimen::new(kind, DType::F32).unwrap(), &method);
        assert_eq!((layer.kind, layer.kind.to_string()), (StoredKind::Adapter(label), label.to_owned()));
        assert!(layer.rank.is_some() && layer.scaling.is_some(), "{name}");
    }
}
