//! Module trees, compared with what PEFT prints for the same model: `tests/python/module_trees.py` wrote the fixture.

use candle_nn::{Conv2d, Conv2dConfig, Embedding, LayerNorm, Linear};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;
use peft_tests::tensors::random;

#[derive(Clone, Injectable)]
struct Model {
    embed: Adapted<Embedding>,
    lin: Adapted<Linear>,
    conv: Adapted<Conv2d>,
    norm: Adapted<LayerNorm>,
    head: Adapted<Linear>,
}

fn model() -> Model {
    let conv = Conv2dConfig { stride: 2, padding: 1, ..Conv2dConfig::default() };
    Model {
        embed: Embedding::new(random(&[7, 6]), 6).into(),
        lin: Linear::new(random(&[8, 6]), Some(random(&[8]))).into(),
        conv: Conv2d::new(random(&[4, 8, 3, 3]), Some(random(&[4])), conv).into(),
        norm: LayerNorm::new(random(&[4]), random(&[4]), 1e-5).into(),
        head: Linear::new(random(&[3, 4]), None).into(),
    }
}

fn lora(targets: &[&str]) -> LoraConfig {
    LoraConfig::new(4, 8.0).with_targets(targets)
}

/// What PEFT prints under a heading.
fn printed(title: &str) -> &'static str {
    let (_, rest) =
        include_str!("../fixtures/module_trees.txt").split_once(&format!("== {title}\n")).unwrap();
    rest.split("\n== ").next().unwrap().trim_end()
}

/// Injects the adapters one after the other and compares.
fn check(title: &str, adapters: &[(&str, &dyn AdapterMethod)]) {
    let mut model = model();
    for (name, config) in adapters {
        model.inject_adapter(*config, name).unwrap();
    }
    assert_eq!(model.module_tree(), printed(title), "{title}");
}

#[test]
fn dora_prints_as_in_peft_on_linear_layers_embeddings_and_convolutions() {
    check("dora", &[("default", &lora(&["embed", "lin", "conv"]).with_dora(true).with_dropout(0.1))]);
}

#[test]
fn a_bias_of_b_prints_as_in_peft() {
    check("lora with a bias", &[("default", &lora(&["lin", "conv"]).with_lora_bias(true))]);
}

#[test]
fn adalora_prints_as_in_peft() {
    let config = AdaLoraConfig::new(4, 2, 10).with_targets(["lin", "conv"]).with_dropout(0.1);
    check("adalora", &[("default", &config)]);
}

#[test]
fn ia3_prints_as_in_peft_in_both_roles() {
    let config = Ia3Config::new().with_targets(["lin", "conv", "head"]).with_feedforward(["conv", "head"]);
    check("ia3", &[("default", &config)]);
}

#[test]
fn loha_prints_as_in_peft_with_cores_where_there_is_a_window() {
    let first = LohaConfig::new(2, 8.0).with_targets(["lin", "conv"]).with_effective_conv2d(true);
    let second = LohaConfig::new(3, 8.0).with_targets(["lin"]);
    check("loha", &[("default", &first), ("second", &second)]);
}

#[test]
fn lokr_prints_as_in_peft_with_the_matrices_that_it_has() {
    let config = LokrConfig::new(1, 8.0).with_targets(["lin", "conv"]);
    check("lokr", &[("default", &config.with_effective_conv2d(true).with_decompose_both(true))]);
    let (first, second) = (LokrConfig::new(1, 8.0), LokrConfig::new(4, 8.0));
    let (first, second) = (first.with_targets(["lin", "head"]), second.with_targets(["lin", "conv"]));
    check("two lokr", &[("first", &first), ("second", &second)]);
}

#[test]
fn modules_that_train_in_full_print_as_in_peft() {
    check("saved modules", &[("default", &lora(&["lin"]).with_modules_to_save(["norm", "head"]))]);
}

#[test]
fn two_adapters_print_as_in_peft() {
    let (first, second) = (lora(&["embed", "lin"]), lora(&["embed", "lin", "head"]).with_dropout(0.1));
    check("two adapters", &[("first", &first), ("second", &second)]);
}

#[test]
fn two_adapters_with_copies_of_one_module_print_as_in_peft() {
    let config = lora(&["lin"]).with_modules_to_save(["head"]);
    check("two saved", &[("first", &config), ("second", &config)]);
}

#[test]
fn trainable_tokens_print_as_in_peft() {
    let config = lora(&["lin"]).with_trainable_tokens([("embed", vec![1u32, 4])]);
    check("tokens", &[("default", &config)]);
}
