//! Adapters for the small model, with other configs and other tensors.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use peft_runtime::adapter::AdapterMethod;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::changed;
use crate::fixture::{Model, lora, random};

/// An adapter with this config.
pub fn made(config: &dyn AdapterMethod) -> TempDir {
    Model::random(DType::F32).adapter(config, "default")
}

/// A LoRA adapter whose config has other values.
pub fn configured(config: Value) -> TempDir {
    changed(made(&lora()).path(), &config, |tensors| tensors)
}

/// A LoRA adapter whose keys are others.
pub fn with_keys(name: impl Fn(&str) -> String) -> TempDir {
    let named = |tensors: BTreeMap<String, Tensor>| {
        tensors.into_iter().map(|(key, tensor)| (name(&key), tensor)).collect()
    };
    changed(made(&lora()).path(), &json!({}), named)
}

/// A LoRA adapter with more tensors.
pub fn with_more(config: Value, more: &[(&str, &[usize])]) -> TempDir {
    let add = |mut tensors: BTreeMap<String, Tensor>| {
        tensors.extend(more.iter().map(|(key, shape)| (format!("base_model.model.{key}"), random(shape))));
        tensors
    };
    changed(made(&lora()).path(), &config, add)
}

/// An adapter with other values in its config, without the tensors whose keys have this in them.
pub fn without(config: &dyn AdapterMethod, fields: &Value, mark: &str) -> TempDir {
    changed(made(config).path(), fields, |tensors| {
        tensors.into_iter().filter(|(key, _)| !key.contains(mark)).collect()
    })
}
