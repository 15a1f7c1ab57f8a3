//! Names and shapes of the base model.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use peft_runtime::ModelWeights;
use peft_runtime::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{changed, report, status};
use crate::fixture::{Model, error_of, lora, random, text};

/// The base model's weights under other names and with other shapes.
fn base(model: &Model, config: &Value, change: impl Fn(String, Tensor) -> (String, Tensor)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tensors: BTreeMap<String, Tensor> =
        model.base_state_dict().into_iter().map(|(name, tensor)| change(name, tensor)).collect();
    let bytes = safetensors::serialize(&tensors, None).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

fn in_language_model(name: String, tensor: Tensor) -> (String, Tensor) {
    (format!("language_model.{name}"), tensor)
}

/// The misfits for PEFT.
fn misfits(adapter: &Path, base: &Path) -> String {
    let report = report(&[text(adapter), "--for", "peft", "--base", text(base)]);
    report["programs"][0]["base"].to_string()
}

#[test]
fn an_adapter_of_the_base_model_fits() {
    let mut model = Model::random(DType::F32);
    let folder = model.save();
    let config = lora().with_targets(["q_proj", "embed_tokens"]).with_modules_to_save(["lm_head"]);
    let adapter = model.adapter(&config, "default");
    assert_eq!(status(&[text(adapter.path()), "--for", "peft", "--base", text(folder.path())]), 0);
}

#[test]
fn another_prefix_is_found_by_trying_and_said_by_check_and_merge() {
    let mut model = Model::random(DType::F32);
    let wrapped = base(&model, &json!({}), in_language_model);
    let adapter = model.adapter(&lora(), "default");
    let arguments = [text(adapter.path()), "--for", "peft", "--base", text(wrapped.path())];
    assert_eq!(status(&arguments), 1);
    let found = misfits(adapter.path(), wrapped.path());
    assert!(found.contains("`--rename =language_model`"), "{found}");
    let other = base(&model, &json!({}), |name, tensor| (format!("backbone.{name}"), tensor));
    let output = adapter.path().join("merged");
    let merge =
        ["merge", "--base", text(other.path()), "--adapter", text(adapter.path()), "-o", text(&output)];
    let error = error_of(&merge, 1);
    assert!(error.contains("`--rename =backbone`"), "{error}");
    crate::fixture::output_of(&[&merge[..], &["--rename", "=backbone"]].concat());
    let written = ModelWeights::open(&output).unwrap();
    let name = "backbone.model.layers.0.self_attn.q_proj.weight";
    let merged = written.tensor(name, &candle_core::Device::Cpu).unwrap();
    let expected = &model.merged(&["default"])["model.layers.0.self_attn.q_proj.weight"];
    assert!(crate::fixture::distance(&merged, expected) < 1e-6);
}

#[test]
fn a_module_that_is_nowhere_gets_no_advice() {
    let mut model = Model::random(DType::F32);
    let other = base(&model, &json!({}), |name, tensor| (name.replace("o_proj", "out"), tensor));
    let adapter = model.adapter(&lora(), "default");
    let found = misfits(adapter.path(), other.path());
    assert!(found.contains("o_proj") && found.contains("no prefix"), "{found}");
}

#[test]
fn shapes_are_compared_module_by_module() {
    let mut model = Model::random(DType::F32);
    let smaller = base(&model, &json!({}), |name, tensor| {
        if name.contains("o_proj") { (name, random(&[8, 6])) } else { (name, tensor) }
    });
    let larger = base(&model, &json!({}), |name, tensor| {
        let rows = tensor.dims()[0];
        if rows == 11 { (name, random(&[10, 8])) } else { (name, tensor) }
    });
    let plain = model.clone().adapter(&lora(), "default");
    let found = misfits(plain.path(), smaller.path());
    assert!(found.contains("o_proj") && found.contains("[8, 6]"), "{found}");
    let copied = model.clone().adapter(&lora().with_modules_to_save(["lm_head"]), "default");
    let found = misfits(copied.path(), larger.path());
    assert!(found.contains("11 rows") && found.contains("10") && found.contains("resized"), "{found}");
    let tokens = [("embed_tokens", vec![1, 10])];
    let tokens = model.adapter(&lora().with_trainable_tokens(tokens), "default");
    let found = misfits(tokens.path(), larger.path());
    assert!(found.contains("token 10"), "{found}");
}

#[test]
fn tied_embeddings_are_a_note_and_a_tied_head_is_there() {
    let mut model = Model::random(DType::F32);
    let whole = base(&model, &json!({ "tie_word_embeddings": true }), |name, tensor| (name, tensor));
    let tied: BTreeMap<String, Tensor> =
        model.base_state_dict().into_iter().filter(|(name, _)| name != "lm_head.weight").collect();
    std::fs::write(whole.path().join("model.safetensors"), safetensors::serialize(&tied, None).unwrap())
        .unwrap();
    let adapter = model.adapter(&lora().with_targets(["lm_head", "q_proj"]), "default");
    let report = report(&[text(adapter.path()), "--for", "peft", "--base", text(whole.path())]);
    assert_eq!(report["programs"][0]["base"], json!([]), "{report}");
    assert!(report["notes"].to_string().contains("lm_head"), "{report}");
    // Without the weight of the layer, which PEFT saves with it.
    let factors = changed(adapter.path(), &json!({}), |tensors| {
        tensors.into_iter().filter(|(key, _)| key.contains("lora_")).collect()
    });
    let head =
        |program: &str| status(&[text(factors.path()), "--for", program, "--base", text(whole.path())]);
    assert_eq!(["peft", "vllm", "mistralrs", "llama.cpp"].map(head), [0, 0, 1, 1]);
    let untouched = changed(adapter.path(), &json!({}), |tensors| {
        tensors.into_iter().filter(|(key, _)| !key.contains("lm_head")).collect()
    });
    let report = super::report(&[text(untouched.path()), "--for", "vllm", "--base", text(whole.path())]);
    assert_eq!(report["notes"], json!([]), "{report}");
}
