//! Modules that are wrapped otherwise in the adapter than in the base model.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::Linear;
use peft_runtime::prelude::*;
use peft_runtime::{BaseWeights, ModelWeights, NameMap, StoredAdapter};
use peft_tests::tensors::random;

use crate::merging::{base, merged};

/// A base model's folder with square weights of these names.
fn base_folder(modules: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let weights: BTreeMap<String, Tensor> =
        modules.iter().map(|module| (format!("{module}.weight"), random((4, 4)))).collect();
    safetensors::serialize_to_file(&weights, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}

/// An adapter's folder on these modules, alpha twice the rank, with `fields` in its config besides.
fn adapter_folder(modules: &[&str], fields: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = BTreeMap::new();
    for module in modules {
        tensors.insert(format!("base_model.model.{module}.lora_A.weight"), random((2, 4)));
        tensors.insert(format!("base_model.model.{module}.lora_B.weight"), random((4, 2)));
    }
    safetensors::serialize_to_file(&tensors, None, &folder.path().join("adapter_model.safetensors")).unwrap();
    let config = format!(r#"{{"peft_type": "LORA", "r": 2, "lora_alpha": 4, {fields}}}"#);
    std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    folder
}

/// Asserts that merging changes exactly `module`, by the update at the adapter's `own` path times `scaling`.
fn assert_changes(adapter: &Path, base: &Path, (module, own): (&str, &str), scaling: f64) {
    let tensors =
        candle_core::safetensors::load(adapter.join("adapter_model.safetensors"), &Device::Cpu).unwrap();
    let factor = |name: &str| &tensors[&format!("base_model.model.{own}.lora_{name}.weight")];
    let update = (factor("B").matmul(factor("A")).unwrap() * scaling).unwrap();
    let found = &merged(adapter, base).unwrap()[&format!("{module}.weight")];
    let before = ModelWeights::open(base).unwrap().tensor(&format!("{module}.weight"), &Device::Cpu).unwrap();
    let error = (found - (before + update).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
    assert!(error.to_scalar::<f32>().unwrap() < 1e-5, "{module}");
}

#[test]
fn wrappers_may_differ_between_adapter_and_base_model() {
    for (own, module) in [
        ("model.layers.0.q", "model.layers.0.q"),
        ("layers.0.q", "model.layers.0.q"),
        ("model.layers.0.q", "layers.0.q"),
        ("model.layers.0.q", "language_model.model.layers.0.q"),
        ("language_model.model.layers.0.q", "model.layers.0.q"),
        ("model.language_model.layers.0.q", "language_model.model.layers.0.q"),
        ("model.vision_tower.layers.0.q", "vision_tower.layers.0.q"),
        ("transformer.h.0.q", "h.0.q"),
        ("h.0.q", "transformer.h.0.q"),
        ("base_model.model.model.layers.0.q", "model.layers.0.q"),
    ] {
        let base = base_folder(&[module, "other.layers.0.k"]);
        for targets in
            [r#""target_modules": ["q"]"#, &format!(r#""target_modules": "{}""#, own.replace('.', r"\\."))]
        {
            // A second wrapper is no part of the names that a pattern is matched against.
            let adapter = adapter_folder(&[own], &targets.replace(r"base_model\\.model\\.", ""));
            assert_changes(adapter.path(), base.path(), (module, own), 2.0);
        }
    }
}

#[test]
fn patterns_of_the_config_go_with_the_modules() {
    let base = base_folder(&["model.layers.0.q", "model.layers.1.q"]);
    let own = ["language_model.layers.0.q", "language_model.layers.1.q"];
    let fields = r#""target_modules": ["q"], "alpha_pattern": {"language_model.layers.1.q": 3.0}"#;
    let adapter = adapter_folder(&own, fields);
    assert_changes(adapter.path(), base.path(), ("model.layers.0.q", own[0]), 2.0);
    assert_changes(adapter.path(), base.path(), ("model.layers.1.q", own[1]), 1.5);
}

#[test]
fn a_name_that_may_be_two_modules_is_refused() {
    let two = base_folder(&["model.layers.0.q", "language_model.layers.0.q"]);
    let adapter = adapter_folder(&["layers.0.q"], r#""target_modules": ["q"]"#);
    let error = StoredAdapter::open_for(adapter.path(), &base(two.path())).unwrap_err().chain();
    assert!(error.contains("`language_model.layers.0.q` or `model.layers.0.q` of the base model"), "{error}");
}

#[test]
fn other_names_are_refused_with_the_rename_that_fits() {
    let of_text = base_folder(&["text.encoder.layers.0.q", "text.encoder.layers.1.q"]);
    let adapter = adapter_folder(&["encoder.layers.0.q", "encoder.layers.1.q"], r#""target_modules": ["q"]"#);
    let error = StoredAdapter::open_for(adapter.path(), &base(of_text.path())).unwrap_err().chain();
    assert!(
        error.contains("`--rename =text`") && error.contains(r#"NameMap::new().prefix("", "text")"#),
        "{error}"
    );
    let weights = BaseWeights::new(ModelWeights::open(of_text.path()).unwrap()).unwrap();
    let renamed = weights.with_names(NameMap::new().prefix("", "text"));
    assert!(StoredAdapter::open_for(adapter.path(), &renamed).is_ok());
}

#[derive(Injectable)]
struct Block {
    q: Adapted<Linear>,
}

#[derive(Injectable)]
struct Model {
    layers: Vec<Block>,
}

fn model() -> Model {
    let layer =
        || Block { q: Linear::new(Tensor::zeros((4, 4), DType::F32, &Device::Cpu).unwrap(), None).into() };
    Model { layers: vec![layer(), layer()] }
}

#[test]
fn a_model_in_memory_loads_and_swaps_what_is_wrapped_otherwise() {
    let adapter = adapter_folder(&["model.layers.0.q", "model.layers.1.q"], r#""target_modules": ["q"]"#);
    let mut model = model();
    model.load_adapter(adapter.path(), "default").unwrap();
    let state = model.adapter_state_dict("default").unwrap();
    let file = candle_core::safetensors::load(adapter.path().join("adapter_model.safetensors"), &Device::Cpu)
        .unwrap();
    for (key, tensor) in &state {
        let own = &file[&key.replace("base_model.model.", "base_model.model.model.")];
        assert_eq!(tensor.to_vec2::<f32>().unwrap(), own.to_vec2::<f32>().unwrap(), "{key}");
    }
    let other = adapter_folder(
        &["language_model.layers.0.q", "language_model.layers.1.q"],
        r#""target_modules": ["q"]"#,
    );
    model.hotswap_adapter(other.path(), "default").unwrap();
}
