//! The custom layer kind under every method.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close, is_close};
use peft_tests::tensors::{random, randomise, same_bits};

use crate::model::{Model, scale};

/// Every method of the library, and the custom one.
fn methods() -> Vec<Box<dyn AdapterMethod>> {
    let targets = || targets!(Model; "own", "theirs");
    vec![
        Box::new(LoraConfig::new(2, 4.0).with_targets(targets())),
        Box::new(LoraConfig::new(2, 4.0).with_targets(targets()).with_dora(true)),
        Box::new(AdaLoraConfig::new(3, 2, 10).with_targets(targets())),
        Box::new(Ia3Config::new().with_targets(targets()).with_feedforward(["own"])),
        Box::new(LohaConfig::new(2, 4.0).with_targets(targets())),
        Box::new(LokrConfig::new(2, 4.0).with_targets(targets())),
        Box::new(scale()),
    ]
}

#[test]
fn every_method_works_on_the_custom_layer() {
    for method in methods() {
        let name = method.name();
        let (mut model, x) = (Model::new(), random(&[3, 5]));
        let base = model.forward(&x);
        let report = model.inject_adapter(&*method, "default").unwrap();
        assert_eq!(report.adapted.len(), 2, "{name}");
        let what = format!("{name}: the output with a fresh adapter");
        assert_close(&model.forward(&x), &base, Tolerance::absolute(1e-4), what);

        randomise(&mut model, "default", 0.5).unwrap();
        let output = model.forward(&x);
        assert!(!is_close(&output, &base, Tolerance::absolute(1e-3)), "{name}: the adapter does nothing");
        model.merge_adapters(&MergeOptions::active()).unwrap();
        let merged = format!("{name}: the merged output");
        assert_close(&model.forward(&x), &output, Tolerance::absolute(1e-2), merged);
        model.unmerge_adapters().unwrap();
        assert!(same_bits(&model.forward(&x), &output), "{name}");

        let grads = model.loss(&x).backward().unwrap();
        for (key, var) in model.trainable_parameters() {
            assert!(grads.get(&var).is_some(), "{name}: no gradient for `{key}`");
        }
        model.unload().unwrap();
        assert!(same_bits(&model.forward(&x), &base), "{name}");
    }
}

#[test]
fn a_pass_of_the_model_is_one_pass_of_the_layer() {
    let mut model = Model::new();
    model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(targets!(Model; "own")), "default").unwrap();
    let x = random(&[3, 5]);
    for calls in 1..4 {
        model.forward(&x);
        assert_eq!((model.own.base().calls(), model.plain.calls()), (calls, calls));
    }
}

#[test]
fn the_custom_layer_is_shown_and_saved_like_others() {
    let mut model = Model::new();
    let tree = model.module_tree();
    assert!(tree.contains("(own): CountedLinear(in_features=5, out_features=6)"), "{tree}");
    let state = model.base_state_dict();
    let keys: Vec<&str> = state.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        ["own.bias", "own.weight", "plain.bias", "plain.weight", "theirs.bias", "theirs.weight"]
    );
    let zeros: BTreeMap<String, Tensor> =
        state.iter().map(|(key, tensor)| (key.clone(), tensor.zeros_like().unwrap())).collect();
    model.load_base_state_dict(&zeros).unwrap();
    let zero = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    assert_close(&model.forward(&random(&[2, 5])), &zero, Tolerance::absolute(0.0), "the output");
    let error =
        model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(["plain"]), "default").unwrap_err();
    assert!(error.to_string().contains("declare the field as `Adapted<CountedLinear>`"), "{error}");
}
