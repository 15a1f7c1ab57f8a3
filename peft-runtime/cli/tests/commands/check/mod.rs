//! `peft check`.

mod adapters;
mod base;
mod experts;
mod fixes;
mod mismatches;
mod rules;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::safetensors::load;
use candle_core::{Device, Tensor};
use serde_json::Value;
use tempfile::TempDir;

use crate::fixture::{run, text};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// The report about an adapter, whatever its answer.
fn report(arguments: &[&str]) -> Value {
    let output = run(&[&["check"], arguments, &["--json"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{arguments:?}: {errors}"))
}

/// The exit status.
fn status(arguments: &[&str]) -> i32 {
    run(&[&["check"], arguments].concat()).status.code().unwrap()
}

fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    load(folder.join(WEIGHTS), &Device::Cpu).unwrap().into_iter().collect()
}

fn write_tensors(folder: &Path, tensors: &BTreeMap<String, Tensor>) {
    std::fs::write(folder.join(WEIGHTS), safetensors::serialize(tensors, None).unwrap()).unwrap();
}

/// A copy of an adapter with other values in its config and other tensors.
fn changed(
    adapter: &Path,
    config: &Value,
    change: impl Fn(BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor>,
) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let own = std::fs::read_to_string(adapter.join(CONFIG)).unwrap();
    let mut own: serde_json::Map<String, Value> = serde_json::from_str(&own).unwrap();
    own.extend(config.as_object().unwrap().clone());
    std::fs::write(folder.path().join(CONFIG), Value::Object(own).to_string()).unwrap();
    write_tensors(folder.path(), &change(tensors(adapter)));
    folder
}

/// What the programs do with a feature of an adapter, a letter each: y for yes, i for ignored, r for refused.
fn answers(adapter: &Path, feature: &str) -> String {
    let report = report(&[text(adapter)]);
    let has = |verdict: &Value, sort: &str| {
        verdict[sort].as_array().unwrap().iter().any(|finding| finding["feature"] == feature)
    };
    let letter = |verdict: &Value| match (has(verdict, "refused"), has(verdict, "ignored")) {
        (true, _) => 'r',
        (_, true) => 'i',
        _ => 'y',
    };
    report["programs"].as_array().unwrap().iter().map(letter).collect()
}
