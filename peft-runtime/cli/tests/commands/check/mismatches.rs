//! Configs and tensors that do not belong together, one case or more for each rule.

use serde_json::json;
use tempfile::TempDir;

use super::adapters::{configured, made, with_more, without};
use super::changed;
use crate::fixture::lora;

/// The features, each with what PEFT, vLLM, mistral.rs and llama.cpp do with it.
pub fn mismatches() -> Vec<(&'static str, TempDir, &'static str)> {
    let mut all = incomplete();
    all.extend(undeclared());
    all.extend(fields());
    all.extend(selections());
    all
}

/// An adapter with a full copy of the output layer, under another key.
pub fn copies_in(name: &str) -> TempDir {
    let copies = made(&lora().with_modules_to_save(["lm_head"]));
    changed(copies.path(), &json!({}), |tensors| {
        let rename = |key: String| key.replace("lm_head.weight", &format!("lm_head.{name}.weight"));
        tensors.into_iter().map(|(key, tensor)| (rename(key), tensor)).collect()
    })
}

fn incomplete() -> Vec<(&'static str, TempDir, &'static str)> {
    let copies = lora().with_modules_to_save(["lm_head"]);
    let rows = lora().with_trainable_tokens([("embed_tokens", vec![1, 3])]);
    vec![
        ("renamed-copies", copies_in("modules_to_save"), "rrrr"),
        ("renamed-copies", copies_in("modules_to_save.default"), "rrrr"),
        ("missing-copies", without(&copies, &json!({}), "lm_head"), "rrry"),
        ("missing-tokens", without(&rows, &json!({}), "trainable_tokens"), "ryry"),
        ("missing-tokens", configured(json!({ "trainable_token_indices": [1, 3] })), "ryry"),
        ("missing-tokens", configured(json!({ "trainable_token_indices": [] })), "ryry"),
        ("missing-parts", without(&lora().with_dora(true), &json!({}), "magnitude"), "iyyy"),
        ("missing-parts", configured(json!({ "lora_bias": true })), "iyyy"),
        ("missing-parts", configured(json!({ "kasa_config": {} })), "iyyy"),
        ("missing-parts", configured(json!({ "velora_config": {} })), "iyyy"),
        ("missing-parts", configured(json!({ "monteclora_config": { "num_samples": 2 } })), "iyyy"),
    ]
}

fn undeclared() -> Vec<(&'static str, TempDir, &'static str)> {
    let rows = lora().with_trainable_tokens([("embed_tokens", vec![1, 3])]);
    let off = |config: &dyn peft_runtime::adapter::AdapterMethod, fields| {
        changed(made(config).path(), &fields, |tensors| tensors)
    };
    let diagonal = "model.layers.0.self_attn.q_proj.lora_diag";
    vec![
        ("undeclared", off(&lora().with_dora(true), json!({ "use_dora": false })), "irrr"),
        ("undeclared", off(&lora().with_lora_bias(true), json!({ "lora_bias": false })), "irrr"),
        ("undeclared", off(&rows, json!({ "trainable_token_indices": null })), "irrr"),
        ("undeclared", with_more(json!({}), &[(diagonal, &[2])]), "irrr"),
        (
            "undeclared",
            changed(copies_in("modules_to_save").path(), &json!({ "modules_to_save": null }), |tensors| {
                tensors
            }),
            "irrr",
        ),
    ]
}

fn fields() -> Vec<(&'static str, TempDir, &'static str)> {
    let mut all = vec![
        ("null-patterns", configured(json!({ "rank_pattern": null })), "ryry"),
        ("null-patterns", configured(json!({ "alpha_pattern": null })), "ryry"),
        ("null-bias", configured(json!({ "bias": null })), "rrry"),
    ];
    for fields in [
        json!({ "r": null }),
        json!({ "r": 2.0 }),
        json!({ "lora_alpha": null }),
        json!({ "lora_alpha": "6" }),
    ] {
        all.push(("unusable-sizes", configured(fields), "rrrr"));
    }
    for fields in [
        json!({ "task_type": "causal_lm" }),
        json!({ "task_type": "" }),
        json!({ "lora_dropout": null }),
        json!({ "lora_dropout": 2 }),
        json!({ "bias": "All" }),
        json!({ "rank_pattern": [] }),
        json!({ "layers_pattern": ["layers"] }),
        json!({ "target_modules": ".*q_proj", "layers_to_transform": [0] }),
        json!({ "target_modules": 1 }),
        json!({ "modules_to_save": true }),
        json!({ "target_parameters": "q_proj.weight" }),
        json!({ "init_lora_weights": "random" }),
        json!({ "init_lora_weights": "PISSA" }),
        json!({ "init_lora_weights": "loftq", "loftq_config": {} }),
        json!({ "use_dora": true, "lora_bias": true }),
        json!({ "kasa_config": true }),
        json!({ "eva_config": [] }),
        json!({ "monteclora_config": true }),
        json!({ "arrow_config": {} }),
        json!({ "use_bdlora": {} }),
    ] {
        all.push(("unusable-fields", configured(fields), "ryyy"));
    }
    all
}

fn selections() -> Vec<(&'static str, TempDir, &'static str)> {
    vec![
        ("untargeted", configured(json!({ "target_modules": ["q_proj"] })), "iyry"),
        ("untargeted", configured(json!({ "exclude_modules": ["q_proj"] })), "iyry"),
        ("untargeted", configured(json!({ "layers_to_transform": [0] })), "iyry"),
        ("no-targets", configured(json!({ "target_modules": ["nothing"] })), "ryry"),
        ("no-targets", configured(json!({ "target_modules": ".*nothing" })), "ryry"),
        ("no-targets", configured(json!({ "target_modules": [] })), "ryry"),
    ]
}

#[test]
fn what_counts_as_nothing_is_no_fault() {
    for fields in [
        json!({ "lora_dropout": 0 }),
        json!({ "modules_to_save": [] }),
        json!({ "modules_to_save": "" }),
        json!({ "layers_pattern": "" }),
        json!({ "trainable_token_indices": {} }),
        json!({ "monteclora_config": {} }),
        json!({ "use_dora": null }),
        json!({ "init_lora_weights": "gaussian" }),
        json!({ "bias": "lora_only" }),
        json!({ "task_type": null }),
    ] {
        let adapter = configured(fields.clone());
        assert_eq!(super::status(&[crate::fixture::text(adapter.path()), "--for", "peft"]), 0, "{fields}");
    }
}
