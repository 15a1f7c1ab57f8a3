//! Replacing an adapter with another one from a folder.

use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::same_bits;

use crate::{Model, lora, texts};

/// A folder with an adapter called `a` that acts on the base model, and the model with it.
fn saved(base: &Model, config: &dyn AdapterMethod) -> (tempfile::TempDir, Model) {
    let model = base.with(config, "a");
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "a").unwrap();
    (folder, model)
}

#[test]
fn a_hot_swap_brings_other_ranks_another_scaling_and_other_layers() {
    let (base, x) = (Model::new(), Model::input());
    let mut model = base.with(&lora(), "a");
    let config = LoraConfig::new(3, 9.0)
        .with_targets(["lin", "out"])
        .with_rank_pattern([("block.lin", 1)])
        .with_rslora(true);
    let (folder, other) = saved(&base, &config);
    let report = model.hotswap_adapter(folder.path(), "a").unwrap();
    assert!(same_bits(&model.forward(&x), &other.forward(&x)));
    assert_eq!(report.folder, folder.path().join("a"));
    assert_eq!(texts(&report.injection.adapted), ["lin", "block.lin", "block.out"]);
    assert!(report.injection.active);
    let ranks = |key: &str| model.adapter_state_dict("a").unwrap()[key].dims()[0];
    assert_eq!(ranks("base_model.model.lin.lora_A.weight"), 3);
    assert_eq!(ranks("base_model.model.block.lin.lora_A.weight"), 1);
    assert_eq!(model.adapter_config("a").unwrap().downcast_ref::<LoraConfig>().unwrap().rank(), 3);
    let names: Vec<String> = model.layer_status().iter().map(|layer| layer.name.to_string()).collect();
    assert_eq!(
        names,
        ["lin", "block.lin", "block.out"],
        "a layer that the new one does not adapt is a plain one"
    );
    assert!(model.module_tree().ends_with("(head): Linear(in_features=7, out_features=3, bias=True)\n)"));
}

#[test]
fn a_hot_swap_may_bring_another_method() {
    let (base, x) = (Model::new(), Model::input());
    let mut model = base.with(&lora(), "a");
    let targets = ["lin", "head"];
    let configs: [(&str, Box<dyn AdapterMethod>); 3] = [
        ("IA3", Box::new(Ia3Config::new().with_targets(targets).with_feedforward(["head"]))),
        ("LOHA", Box::new(LohaConfig::new(2, 4.0).with_targets(targets))),
        ("LOKR", Box::new(LokrConfig::new(1, 2.0).with_targets(targets).with_decompose_both(true))),
    ];
    for (peft_type, config) in configs {
        let (folder, other) = saved(&base, &*config);
        model.hotswap_adapter(folder.path(), "a").unwrap();
        assert!(same_bits(&model.forward(&x), &other.forward(&x)), "{peft_type}");
        assert_eq!(model.adapter_config("a").unwrap().peft_type(), peft_type);
    }
}

#[test]
fn a_hot_swap_leaves_other_adapters_their_order_and_what_is_active() {
    let (base, x) = (Model::new(), Model::input());
    let (folder, other) = saved(&base, &LoraConfig::new(1, 1.0).with_targets(["head"]));
    let mut model = base.with(&lora(), "a");
    model.add(&lora(), "b");
    model.set_adapter("b").unwrap();
    let with_b = model.forward(&x);
    let report = model.hotswap_adapter(folder.path(), "a").unwrap();
    assert!(!report.injection.active);
    assert!(same_bits(&model.forward(&x), &with_b));
    assert_eq!(model.active_adapters(), ["b"]);
    let head = model.layer_status().into_iter().find(|layer| layer.name.as_str() == "head").unwrap();
    assert_eq!(head.available_adapters, ["a", "b"]);
    model.set_adapter("a").unwrap();
    assert!(same_bits(&model.forward(&x), &other.forward(&x)));
    // In the tree, the adapters keep the order in which they were added.
    let tree = model.module_tree();
    let head = tree.rsplit_once("(head)").unwrap().1;
    assert!(head.find("(a): Linear").unwrap() < head.find("(b): Linear").unwrap(), "{head}");
}

#[test]
fn after_a_hot_swap_an_adapter_trains_if_the_old_one_did() {
    let base = Model::new();
    let (folder, _) = saved(&base, &LoraConfig::new(3, 9.0).with_targets(["head"]));
    let names = |model: &Model| -> Vec<String> {
        model.trainable_parameters().into_iter().map(|(name, _)| name).collect()
    };
    let mut injected = base.with(&lora(), "a");
    injected.hotswap_adapter(folder.path(), "a").unwrap();
    assert_eq!(names(&injected), ["head.lora_A.a.weight", "head.lora_B.a.weight"]);
    let mut loaded = base.clone();
    loaded.load_adapter(folder.path(), "a").unwrap();
    loaded.hotswap_adapter(folder.path(), "a").unwrap();
    assert!(names(&loaded).is_empty());
    // Gradients reach the new tensors.
    let x = Model::input();
    let grads = injected.forward(&x).sqr().unwrap().sum_all().unwrap().backward().unwrap();
    assert!(injected.trainable_parameters().iter().all(|(_, var)| grads.get(var).is_some()));
}

#[test]
fn a_hot_swap_keeps_the_model_disabled_or_in_training() {
    let (base, x) = (Model::new(), Model::input());
    let (folder, other) = saved(&base, &lora().with_dropout(0.5));
    let mut model = base.with(&lora(), "a");
    model.disable_adapters();
    model.hotswap_adapter(folder.path(), "a").unwrap();
    assert!(same_bits(&model.forward(&x), &base.forward(&x)));
    model.enable_adapters();
    assert!(same_bits(&model.forward(&x), &other.forward(&x)));
    model.train();
    model.hotswap_adapter(folder.path(), "a").unwrap();
    assert!(!same_bits(&model.forward(&x), &model.forward(&x)), "dropout acts");
}

#[test]
fn biases_are_constants_again_once_the_adapter_that_trained_them_is_swapped_out() {
    let (base, x) = (Model::new(), Model::input());
    let (folder, _) = saved(&base, &lora());
    let mut model = base.with(&lora().with_bias(Bias::All), "a");
    let trained = model.base_state_dict();
    model.hotswap_adapter(folder.path(), "a").unwrap();
    let names: Vec<String> = model.trainable_parameters().into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().all(|name| name.contains("lora_")), "{names:?}");
    model.disable_adapters();
    assert!(!model.forward(&x).track_op(), "no bias is part of a graph");
    let after = model.base_state_dict();
    assert!(
        trained.iter().all(|(key, tensor)| same_bits(tensor, &after[key])),
        "they keep what they learned"
    );
}

#[test]
fn biases_train_if_the_adapter_that_is_swapped_in_says_so() {
    let (base, x) = (Model::new(), Model::input());
    let (folder, other) = saved(&base, &lora().with_bias(Bias::LoraOnly));
    let mut model = base.with(&lora(), "a");
    let report = model.hotswap_adapter(folder.path(), "a").unwrap();
    assert_eq!(texts(&report.injection.biases), ["block.out", "head"]);
    assert_close(&model.forward(&x), &other.forward(&x), Tolerance::absolute(1e-5), "the output");
    let trains = |wanted: &str| model.trainable_parameters().iter().any(|(name, _)| name == wanted);
    assert!(trains("head.base_layer.bias") && !trains("lin.bias"));
}
