//! `peft-with-scale`: the commands of `peft` in a program that registers the custom method.

use std::path::Path;
use std::process::{Command, Output};

use candle_core::Device;
use peft_runtime::prelude::*;
use peft_runtime::{ModelWeights, StoredAdapter};
use peft_tests::tensors::same_bits;
use serde_json::{Value, json};

use crate::model::{Model, factor, scale, starting_with};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peft-with-scale")).args(arguments).output().unwrap()
}

/// What the command prints when it succeeds without a warning.
fn output_of(arguments: &[&str]) -> String {
    let output = run(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && errors.is_empty(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn json_of(arguments: &[&str]) -> Value {
    serde_json::from_str(&output_of(&[arguments, &["--json"]].concat())).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn inspect_shows_its_layers() {
    let (model, folder) = Model::new().with_adapter(&scale(), "default");
    let report = json_of(&["inspect", text(folder.path())]);
    assert_eq!((&report["method"], &report["parameters"]), (&json!("SCALE"), &json!(2)));
    assert_eq!((&report["ranks"], &report["scalings"]), (&json!({}), &json!({})));
    for (layer, path) in report["layers"].as_array().unwrap().iter().zip(["own", "theirs"]) {
        assert_eq!((&layer["path"], &layer["kind"]), (&json!(path), &json!("Scale")));
        assert_eq!((&layer["norm_a"], &layer["norm_update"]), (&Value::Null, &Value::Null));
        assert_eq!(layer["norms"]["scale_factor"], json!(factor(&model, "default", path).abs()));
    }
    let table = output_of(&["inspect", text(folder.path())]);
    assert!(table.contains("(SCALE)") && table.contains("‖scale_factor‖"), "{table}");
}

#[test]
fn inspect_does_not_say_that_a_factor_of_zero_does_nothing() {
    let mut model = Model::new();
    model.inject_adapter(&starting_with(0.0).with_targets(["own"]), "default").unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "default").unwrap();
    let warnings = String::from_utf8(run(&["inspect", text(folder.path())]).stderr).unwrap();
    assert_eq!(warnings, "warning: `own.scale_factor` is zero everywhere\n");
}

#[test]
fn merge_writes_what_merging_on_the_model_makes() {
    let base = Model::new();
    let (mut model, adapter) = base.with_adapter(&scale(), "default");
    model.merge_adapters(&MergeOptions::active()).unwrap();
    let (weights, output) = (base.save(), tempfile::tempdir().unwrap());
    let written = output.path().join("merged");
    let arguments = ["merge", "--base", text(weights.path()), "--adapter", text(adapter.path()), "--output"];
    let report = json_of(&[&arguments[..], &[text(&written), "--check"]].concat());
    assert_eq!((&report["tensors"], &report["changed"]), (&json!(6), &json!(4)));
    let written_weights = ModelWeights::open(&written).unwrap();
    for (name, tensor) in model.merged_state_dict() {
        assert!(same_bits(&written_weights.tensor(&name, &Device::Cpu).unwrap(), &tensor), "{name}");
    }
    let half = output.path().join("half");
    let refused = run(&[&arguments[..], &[text(&half), "--weights", "0.5"]].concat());
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(error.contains("Scale has no scaling that could take the weight 0.5"), "{error}");
}

#[test]
fn diff_tells_how_far_apart_the_numbers_are() {
    let base = Model::new();
    let (first, a) = base.with_adapter(&scale(), "default");
    let (second, b) = base.with_adapter(&scale(), "default");
    assert!(output_of(&["diff", text(a.path()), text(a.path())]).ends_with("are identical\n"));
    let report = json_of(&["diff", text(a.path()), text(b.path())]);
    assert_eq!((&report["identical"], &report["config"]), (&json!(false), &json!({})));
    for (layer, path) in report["layers"].as_array().unwrap().iter().zip(["own", "theirs"]) {
        let apart = (factor(&first, "default", path) - factor(&second, "default", path)).abs();
        assert!(apart > 0.0 && (layer["distance"].as_f64().unwrap() - apart).abs() < 1e-12, "{layer}");
        assert_eq!((&layer["path"], &layer["cosine"]), (&json!(path), &Value::Null));
    }
    let table = output_of(&["diff", text(a.path()), text(b.path())]);
    assert!(table.contains("own") && table.contains("‖a − b‖"), "{table}");
}

#[test]
fn combine_writes_one_adapter() {
    let base = Model::new();
    let (first, a) = base.with_adapter(&scale(), "default");
    let (second, b) = base.with_adapter(&scale(), "default");
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("sum");
    let weights = ["--weights", "0.5", "0.25", "--output"];
    let inputs = ["combine", text(a.path()), text(b.path())];
    let report = json_of(&[&inputs[..], &weights, &[text(&output)]].concat());
    assert_eq!((&report["layers"], &report["rank"]), (&json!(2), &Value::Null));
    for layer in StoredAdapter::open(&output).unwrap().layers().unwrap() {
        let found = layer.tensor("scale_factor").unwrap().to_vec1::<f32>().unwrap()[0];
        let [a, b] = [&first, &second].map(|model| factor(model, "default", layer.path.as_str()));
        assert!((f64::from(found) - (1.0 + 0.5 * (a - 1.0) + 0.25 * (b - 1.0))).abs() < 1e-6);
    }
}

#[test]
fn usage_names_the_program_and_wrong_usage_has_its_own_status() {
    let help = output_of(&["inspect", "--help"]);
    assert!(help.contains("Usage: peft-with-scale inspect"), "{help}");
    let wrong = run(&["melt"]);
    assert_eq!((wrong.status.code(), wrong.stdout.is_empty()), (Some(2), true));
}
