//! What a LoRA config reaches besides whole layers: rows of embeddings, bare parameters, repeated blocks.

mod parameters;
mod replication;
mod token_model;
mod tokens;
mod tying;

use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;
use peft_runtime::{Error, ModulePath};
use peft_tests::fingerprint::Fingerprint;

/// The keys of an adapter's state dict without the prefix.
fn keys<M: Injectable>(model: &M, name: &str) -> Vec<String> {
    let state = model.adapter_state_dict(name).unwrap().into_keys();
    state.map(|key| key.strip_prefix("base_model.model.").unwrap().to_owned()).collect()
}

/// The text of a refused injection, which leaves the model as it was.
fn refusal<M: Injectable>(model: &mut M, config: &dyn AdapterMethod) -> String {
    let before = Fingerprint::of(model).unwrap();
    let error = model.inject_adapter(config, "refused").unwrap_err();
    assert!(matches!(error, Error::Plan { .. }), "{error}");
    assert_eq!(before.changes(&Fingerprint::of(model).unwrap()), Vec::<String>::new());
    error.to_string()
}

fn texts(paths: &[ModulePath]) -> Vec<&str> {
    paths.iter().map(ModulePath::as_str).collect()
}
