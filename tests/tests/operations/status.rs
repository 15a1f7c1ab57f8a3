//! What layers and the model report about their adapters.

use std::collections::BTreeMap;

use peft_runtime::prelude::*;
use peft_runtime::{Error, LayerStatus, Uniform};

use crate::Model;

/// LoRA called `a` on `head`, with a copy of `norm`; IA3 called `b` on `block.out`; `a` is active.
fn model() -> Model {
    let lora = LoraConfig::new(2, 4.0).with_targets(["head"]).with_modules_to_save(["norm"]);
    let mut model = Model::new().with(&lora, "a");
    model.add(&Ia3Config::new().with_targets(["out"]).with_feedforward(Vec::<&str>::new()), "b");
    model
}

fn of<'s>(status: &'s [LayerStatus], name: &str) -> &'s LayerStatus {
    status.iter().find(|layer| layer.name.as_str() == name).unwrap()
}

#[test]
fn every_layer_with_a_place_for_adapters_has_a_status_in_model_order() {
    let status = model().layer_status();
    let facts: Vec<_> = status
        .iter()
        .map(|layer| (layer.name.as_str(), layer.module_type.as_str(), layer.available_adapters.join(" ")))
        .collect();
    assert_eq!(
        facts,
        [
            ("block.out", "Linear", "b".to_owned()),
            ("norm", "ModulesToSaveWrapper", "a".to_owned()),
            ("head", "lora.Linear", "a".to_owned()),
        ]
    );
    for layer in &status {
        let available = layer.available_adapters.clone();
        assert!(layer.enabled && layer.merged_adapters.is_empty());
        assert_eq!(layer.active_adapters, ["a"], "even where the layer does not have it");
        assert_eq!(layer.trainable, available.iter().map(|name| (name.clone(), true)).collect());
        assert_eq!(layer.devices, available.into_iter().map(|name| (name, ["cpu"].into())).collect());
    }
}

#[test]
fn the_module_types_are_those_that_peft_prints() {
    let types = |config: &dyn peft_runtime::adapter::AdapterMethod| {
        let model = Model::new().with(config, "a");
        of(&model.layer_status(), "head").module_type.clone()
    };
    assert_eq!(types(&AdaLoraConfig::new(2, 1, 10).with_targets(["head"])), "adalora.SVDLinear");
    assert_eq!(types(&LoraConfig::new(2, 4.0).with_targets(["head"]).with_dora(true)), "lora.Linear");
}

#[test]
fn the_status_of_the_model_counts_and_gathers() {
    let status = model().model_status().unwrap();
    assert_eq!(status.base_model_type, "Model");
    assert_eq!(status.peft_types, BTreeMap::from([("a".to_owned(), "LORA"), ("b".to_owned(), "IA3")]));
    // A: 2 x 7, B: 3 x 2, and the copy of the norm: 2 x 7.
    assert_eq!(status.trainable_params, 14 + 6 + 14);
    // Weights and biases: 5 x 6 + 6, 6 x 6 + 6, 6 x 7 + 7, 7 + 7, 7 x 3 + 3; and the vector of IA3.
    assert_eq!(status.total_params, 36 + 42 + 49 + 14 + 24 + 34 + 7);
    assert_eq!(status.num_adapter_layers, 3);
    assert_eq!(status.enabled, Uniform::Everywhere(true));
    assert_eq!(status.active_adapters, Uniform::Everywhere(vec!["a".to_owned()]));
    assert_eq!(status.merged_adapters, Uniform::Everywhere(Vec::new()));
    assert_eq!(status.available_adapters, ["a", "b"]);
    let everywhere = |name: &str| (name.to_owned(), Uniform::Everywhere(true));
    assert_eq!(status.trainable, BTreeMap::from([everywhere("a"), everywhere("b")]));
    assert_eq!(status.devices["a"], ["cpu"].into());
}

#[test]
fn the_status_follows_what_is_disabled_frozen_and_merged() {
    let mut model = model();
    model.disable_adapters();
    model.set_trainable("b", false).unwrap();
    let status = model.model_status().unwrap();
    assert_eq!(status.enabled, Uniform::Everywhere(false));
    assert_eq!(status.trainable["b"], Uniform::Everywhere(false));
    assert_eq!(status.trainable_params, 0, "nothing trains while adapters are disabled");
    model.enable_adapters();
    model.merge_adapters(&MergeOptions::adapters(["b"])).unwrap();
    assert_eq!(model.model_status().unwrap().merged_adapters, Uniform::Everywhere(vec!["b".to_owned()]));
    assert_eq!(of(&model.layer_status(), "block.out").merged_adapters, ["b"]);
    assert!(of(&model.layer_status(), "head").merged_adapters.is_empty());
}

#[test]
fn what_is_attached_and_what_acts_are_said_apart() {
    let acting = |model: &Model| -> Vec<String> {
        let layers = model.layer_status().into_iter();
        layers.map(|layer| format!("{}: {}", layer.name, layer.acting_adapters.join(" "))).collect()
    };
    let mut model = model();
    assert_eq!(acting(&model), ["block.out: ", "norm: a", "head: a"], "`b` is attached and waits");
    model.set_adapters(&["a", "b"]).unwrap();
    assert_eq!(acting(&model), ["block.out: b", "norm: a", "head: a"]);
    model.disable_adapters();
    assert_eq!(acting(&model), ["block.out: ", "norm: ", "head: "]);
    model.enable_adapters();
    model.add(&LoraConfig::new(1, 1.0).with_targets(["head"]), "c");
    model.merge_adapters(&MergeOptions::adapters(["c"])).unwrap();
    assert_eq!(acting(&model), ["block.out: b", "norm: a", "head: c"], "what is merged hides what is not");
}

#[test]
fn a_report_says_where_an_adapter_is_attached_and_where_it_acts() {
    let config = LoraConfig::new(2, 4.0).with_targets(["head"]).with_modules_to_save(["norm"]);
    let mut model = Model::new();
    let first = model.inject_adapter(&config, "a").unwrap();
    assert_eq!(first.attached().map(ToString::to_string).collect::<Vec<_>>(), ["head", "norm"]);
    assert_eq!(first.acting.iter().map(ToString::to_string).collect::<Vec<_>>(), ["norm", "head"]);
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "a").unwrap();
    let saved = folder.path().join("a");
    let second = model.load_adapter(&saved, "b").unwrap();
    let text = second.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("loaded from"), "{text}");
    assert_eq!(lines[2], "attached to 2 layers: head, norm");
    assert_eq!(lines[3], "acting on no layer: it is not active; `set_adapter` activates it");
    assert!(second.injection.acting.is_empty() && !second.injection.active);
    model.disable_adapters();
    model.set_adapter("b").unwrap();
    let swapped = model.hotswap_adapter(&saved, "b").unwrap();
    assert!(
        swapped.to_string().ends_with("adapters are disabled; `enable_adapters` enables them"),
        "{swapped}"
    );
    model.enable_adapters();
    model.add(&LoraConfig::new(1, 1.0).with_targets(["head"]), "c");
    model.merge_adapters(&MergeOptions::adapters(["c"])).unwrap();
    let text = model.hotswap_adapter(&saved, "b").unwrap().to_string();
    assert!(
        text.ends_with("acting on 1 layer: norm; on the others other adapters are merged there"),
        "{text}"
    );
}

#[test]
fn a_new_adapter_finds_nothing_merged_and_layers_that_agree() {
    let on = |targets: &[&str]| LoraConfig::new(1, 1.0).with_targets(targets);
    let mut model = Model::new().with(&on(&["out", "head"]), "m");
    model.add(&on(&["out"]), "b");
    model.add(&on(&["head"]), "c");
    model.delete_adapter("m").unwrap();
    model.merge_adapters(&MergeOptions::adapters(["c"])).unwrap();
    model.add(&on(&["head"]), "d");
    let status = model.model_status().unwrap();
    assert_eq!(status.active_adapters, Uniform::Everywhere(vec!["b".to_owned()]));
    assert_eq!(status.merged_adapters, Uniform::Everywhere(Vec::new()));
}

#[test]
fn an_adapter_with_a_copy_is_never_merged_everywhere_as_in_peft() {
    let mut model = model();
    model.merge_adapters(&MergeOptions::active()).unwrap();
    assert_eq!(of(&model.layer_status(), "head").merged_adapters, ["a"]);
    assert!(of(&model.layer_status(), "norm").merged_adapters.is_empty());
    assert_eq!(model.model_status().unwrap().merged_adapters, Uniform::Irregular);
}

#[test]
fn layers_may_disagree_on_what_is_active_after_a_deletion() {
    let on = |targets: &[&str]| LoraConfig::new(1, 1.0).with_targets(targets);
    let mut model = Model::new().with(&on(&["out", "head"]), "m");
    model.add(&on(&["out"]), "b");
    model.add(&on(&["head"]), "c");
    model.delete_adapter("m").unwrap();
    assert_eq!(of(&model.layer_status(), "block.out").active_adapters, ["b"]);
    assert_eq!(of(&model.layer_status(), "head").active_adapters, ["c"]);
    assert_eq!(model.model_status().unwrap().active_adapters, Uniform::Irregular);
}

#[test]
fn a_model_without_adapters_has_no_status() {
    let model = Model::new();
    assert!(model.layer_status().is_empty());
    let error = model.model_status().unwrap_err();
    assert!(matches!(error, Error::NoAdapters { .. }), "{error}");
    assert_eq!(error.to_string(), "cannot report the status: the model has no adapters");
}
