//! Adapters on bare parameters, on single experts and on convolutions in groups, compared with base models that have them.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::adapters::made;
use super::{changed, report, status};
use crate::fixture::{lora, random, text};

type Shapes<'a> = Vec<(String, &'a [usize])>;

const BLOCK: &str = "model.layers.0.mlp";

/// A base model with random weights of these shapes.
fn base(config: &Value, shapes: &[(&str, &[usize])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tensors: BTreeMap<String, Tensor> =
        shapes.iter().map(|(name, shape)| ((*name).to_owned(), random(shape))).collect();
    let bytes = safetensors::serialize(&tensors, None).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

/// An adapter of rank 2 with these tensors only.
fn adapter(config: &Value, shapes: &Shapes<'_>) -> TempDir {
    changed(made(&lora()).path(), config, |_| {
        let tensor = |(key, shape): &(String, &[usize])| (format!("base_model.model.{key}"), random(shape));
        shapes.iter().map(tensor).collect()
    })
}

/// A model with two experts in one parameter each: three inner features, four outer ones.
fn mixture(model_type: &str) -> TempDir {
    base(
        &json!({ "model_type": model_type }),
        &[
            ("model.layers.0.mlp.experts.gate_up_proj", &[2, 6, 4]),
            ("model.layers.0.mlp.experts.down_proj", &[2, 4, 3]),
            ("model.layers.0.mlp.gate.weight", &[2, 4]),
        ],
    )
}

/// The factors of single experts, under the names of today or of Mixtral at first.
fn single_experts(block: &str, names: [&str; 3]) -> Shapes<'static> {
    let [gate, up, down] = names;
    let mut shapes: Shapes<'static> = Vec::new();
    for expert in 0..2 {
        for (name, a, b) in [(gate, &[2, 4], &[3, 2]), (up, &[2, 4], &[3, 2]), (down, &[2, 3], &[4, 2])] {
            let path = format!("model.layers.0.{block}.experts.{expert}.{name}");
            shapes.push((format!("{path}.lora_A.weight"), a));
            shapes.push((format!("{path}.lora_B.weight"), b));
        }
    }
    shapes.push((format!("model.layers.0.{block}.gate.lora_A.weight"), &[2, 4]));
    shapes.push((format!("model.layers.0.{block}.gate.lora_B.weight"), &[2, 2]));
    shapes
}

fn fits(adapter: &TempDir, base: &TempDir) -> bool {
    status(&[text(adapter.path()), "--for", "peft", "--base", text(base.path())]) == 0
}

fn judged(adapter: &TempDir, base: &TempDir) -> String {
    let report = report(&[text(adapter.path()), "--for", "peft", "--base", text(base.path())]);
    report["programs"][0].to_string()
}

#[test]
fn two_parameters_of_one_module_fit() {
    let config = json!({
        "target_modules": [],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    });
    let shapes = |inner: &'static [usize]| -> Shapes<'static> {
        vec![
            (format!("{BLOCK}.experts.base_layer.lora_A.weight"), inner),
            (format!("{BLOCK}.experts.base_layer.lora_B.weight"), &[6, 4]),
            (format!("{BLOCK}.experts.lora_A.weight"), &[4, 3]),
            (format!("{BLOCK}.experts.lora_B.weight"), &[4, 4]),
        ]
    };
    let base = mixture("qwen3_moe");
    let both = adapter(&config, &shapes(&[4, 4]));
    assert!(fits(&both, &base), "{}", judged(&both, &base));
    assert!(!fits(&adapter(&config, &shapes(&[4, 5])), &base));
}

#[test]
fn single_experts_fit_where_peft_fuses_them() {
    let names = ["gate_proj", "up_proj", "down_proj"];
    let config = json!({ "target_modules": ["gate", "gate_proj", "up_proj", "down_proj"] });
    let shapes = single_experts("mlp", names);
    let base = mixture("qwen3_moe");
    let whole = adapter(&config, &shapes);
    assert!(fits(&whole, &base), "{}", judged(&whole, &base));
    let first = adapter(
        &json!({ "target_modules": ["gate", "w1", "w2", "w3"] }),
        &single_experts("block_sparse_moe", ["w1", "w3", "w2"]),
    );
    assert!(fits(&first, &mixture("mixtral")), "{}", judged(&first, &mixture("mixtral")));
    let without = |mark: &str| -> Shapes<'static> {
        shapes.iter().filter(|(key, _)| !key.contains(mark)).cloned().collect()
    };
    for (mark, words) in [("experts.1.", "all together"), ("up_proj", "only one of them")] {
        let found = judged(&adapter(&config, &without(mark)), &base);
        assert!(found.contains(words), "{mark}: {found}");
    }
    let other = judged(&whole, &mixture("newest"));
    assert!(other.contains("the base model has no"), "{other}");
}

#[test]
fn the_scaling_of_fused_experts_is_that_of_both_together() {
    let shapes = single_experts("mlp", ["gate_proj", "up_proj", "down_proj"]);
    let base = mixture("qwen3_moe");
    for fields in [json!({ "use_rslora": true }), json!({ "alpha_pattern": { "down_proj": 1 } })] {
        let mut config = json!({ "target_modules": ["gate", "gate_proj", "up_proj", "down_proj"] });
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let found = judged(&adapter(&config, &shapes), &base);
        assert!(found.contains("rescaled-experts"), "{found}");
    }
}

#[test]
fn convolutions_in_groups_fit_their_weights() {
    let base = base(&json!({}), &[("grouped.weight", &[8, 4, 3, 3]), ("deep.weight", &[8, 1, 3, 3])]);
    for (name, a, b, expected) in [
        ("grouped", [2, 8, 3, 3], [8, 1, 1, 1], true),
        ("grouped", [2, 8, 3, 3], [8, 2, 1, 1], false),
        ("grouped", [2, 8, 5, 5], [8, 1, 1, 1], false),
        ("grouped", [2, 4, 3, 3], [8, 1, 1, 1], false),
    ] {
        let shapes: Shapes<'_> =
            vec![(format!("{name}.lora_A.weight"), &a), (format!("{name}.lora_B.weight"), &b)];
        let adapter = adapter(&json!({ "target_modules": [name] }), &shapes);
        assert_eq!(fits(&adapter, &base), expected, "{name} {a:?} {b:?}: {}", judged(&adapter, &base));
    }
}

#[test]
fn every_parameter_of_a_saved_module_has_to_be_there() {
    let base = base(&json!({}), &[("q_proj.weight", &[8, 8]), ("head.weight", &[4, 8]), ("head.bias", &[4])]);
    let mut shapes: Shapes<'_> = vec![
        ("q_proj.lora_A.weight".to_owned(), &[2, 8]),
        ("q_proj.lora_B.weight".to_owned(), &[8, 2]),
        ("head.weight".to_owned(), &[4, 8]),
    ];
    let config = json!({ "target_modules": ["q_proj"], "modules_to_save": ["head"] });
    let found = judged(&adapter(&config, &shapes), &base);
    assert!(found.contains("`head.bias`"), "{found}");
    shapes.push(("head.bias".to_owned(), &[4]));
    assert!(fits(&adapter(&config, &shapes), &base));
}
