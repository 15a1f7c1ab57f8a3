//! `peft inspect`, `peft diff`, `peft combine`, help and usage.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use peft_runtime::StoredAdapter;
use peft_runtime::prelude::*;
use serde_json::json;

use crate::fixture::{Model, assert_same, fails, lora, peft, prints, random, tells, text};

#[test]
fn inspecting_shows_ranks_scalings_and_norms() {
    let mut model = Model::random(DType::F32);
    let config = lora().with_rank_pattern([("layers.1.self_attn.o_proj", 4)]).with_base_model("org/base");
    let adapter = model.adapter(&config, "default");
    let report = tells(&["inspect", text(adapter.path())]);
    assert_eq!((&report["method"], &report["base_model"]), (&json!("LORA"), &json!("org/base")));
    assert_eq!(report["ranks"], json!({ "2": 3, "4": 1 }));
    assert_eq!(report["scalings"], json!({ "3": 3, "1.5": 1 }));
    assert_eq!(report["parameters"], json!(3 * 2 * (8 + 8) + 4 * (8 + 8)));
    assert_eq!(report["dtypes"], json!({ "F32": 8 }));
    assert!(report["warnings"].as_array().unwrap().is_empty());
    let layers = report["layers"].as_array().unwrap();
    let paths: Vec<&str> = layers.iter().map(|layer| layer["path"].as_str().unwrap()).collect();
    assert_eq!(paths[0], "model.layers.0.self_attn.o_proj");
    let base = model.base_state_dict();
    let merged = model.merged(&["default"]);
    for layer in layers {
        let name = format!("{}.weight", layer["path"].as_str().unwrap());
        let update = (&merged[&name] - &base[&name]).unwrap();
        let expected = update.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let found = layer["norm_update"].as_f64().unwrap();
        assert!((found - f64::from(expected)).abs() < 1e-4, "{name}: {found}, not {expected}");
    }
    let table = prints(&["inspect", text(adapter.path())]);
    assert!(table.contains("2 (3 layers), 4 (1 layer)") && table.contains("‖s·BA‖"), "{table}");
}

#[test]
fn inspecting_warns_of_zeros_and_of_what_is_no_number() {
    let mut model = Model::random(DType::F32);
    let adapter = model.adapter(&lora(), "default");
    let stored = StoredAdapter::open(adapter.path()).unwrap();
    let mut tensors = stored.tensors(&Device::Cpu).unwrap();
    let key = |end: &str| format!("base_model.model.model.layers.0.self_attn.{end}");
    let zero = tensors[&key("q_proj.lora_B.weight")].zeros_like().unwrap();
    tensors.insert(key("q_proj.lora_B.weight"), zero);
    let infinite = (&tensors[&key("o_proj.lora_A.weight")] / 0.0).unwrap();
    tensors.insert(key("o_proj.lora_A.weight"), infinite);
    let folder = tempfile::tempdir().unwrap();
    StoredAdapter::new("bad", stored.config().clone(), tensors).unwrap().save(folder.path()).unwrap();
    let output = peft(&["inspect", text(folder.path())]);
    let warnings = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success());
    assert_eq!(warnings.lines().count(), 2, "{warnings}");
    assert!(warnings.contains("q_proj.lora_B.weight` is zero everywhere"), "{warnings}");
    assert!(warnings.contains("o_proj.lora_A.weight` has 16 values"), "{warnings}");
}

#[test]
fn every_method_can_be_inspected_and_drawn() {
    let all: Vec<Box<dyn peft_runtime::adapter::AdapterMethod>> = vec![
        Box::new(lora().with_dora(true)),
        Box::new(lora().with_init(LoraInit::Pissa)),
        Box::new(lora().with_modules_to_save(["lm_head"]).with_trainable_tokens([1u32, 4])),
        Box::new(AdaLoraConfig::new(3, 2, 10).with_init(false).with_targets(["q_proj"])),
        Box::new(Ia3Config::new().with_targets(["q_proj", "o_proj"]).with_feedforward(["o_proj"])),
    ];
    for config in all {
        let adapter = Model::random(DType::F32).adapter(config.as_ref(), "default");
        let picture = adapter.path().join("norms.png");
        let told = prints(&["inspect", text(adapter.path()), "--plot", text(&picture)]);
        assert!(told.contains("model.layers.1.self_attn.q_proj"), "{told}");
        let bytes = std::fs::read(&picture).unwrap();
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 1000);
    }
}

#[test]
fn two_adapters_are_compared_layer_by_layer() {
    let mut model = Model::random(DType::F32);
    let first = model.adapter(&lora(), "first");
    let second = model.adapter(&lora().with_targets(["q_proj", "k_proj"]), "second");
    let same = prints(&["diff", text(first.path()), text(first.path())]);
    assert!(same.ends_with("are identical\n"), "{same}");
    let report = tells(&["diff", text(first.path()), text(second.path())]);
    assert_eq!(report["identical"], json!(false));
    assert_eq!(report["only_in_a"].as_array().unwrap().len(), 2);
    assert_eq!(report["only_in_b"].as_array().unwrap().len(), 2);
    assert!(report["config"]["target_modules"].is_array(), "{report}");
    let layer = &report["layers"][0];
    let name = format!("{}.weight", layer["path"].as_str().unwrap());
    let (a, b) = (model.merged(&["first"]), model.merged(&["second"]));
    let apart =
        (&a[&name] - &b[&name]).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    assert!((layer["distance"].as_f64().unwrap() - f64::from(apart)).abs() < 1e-4, "{layer}");
    let table = prints(&["diff", text(first.path()), text(second.path())]);
    assert!(
        table.contains("only in a: model.layers.0.self_attn.o_proj") && table.contains("cosine"),
        "{table}"
    );
}

#[test]
fn every_weighted_combination_is_that_of_a_model() {
    let mut model = Model::random(DType::F32);
    let config = || lora().with_targets(["q_proj", "k_proj", "embed_tokens"]);
    let first = model.adapter(&config(), "first");
    let second = model.adapter(&config(), "second");
    for combination in CombinationType::ALL {
        let folder = tempfile::tempdir().unwrap();
        let prunes = ["ties", "dare", "magnitude"].iter().any(|word| combination.name().starts_with(word));
        let mut options = CombineOptions::new(combination).with_seed(7);
        let mut arguments = vec![
            "combine",
            text(first.path()),
            text(second.path()),
            "--weights=0.7,-0.4",
            "--seed",
            "7",
            "--type",
            combination.name(),
        ];
        if prunes {
            options = options.with_density(0.5);
            arguments.extend(["--density", "0.5"]);
        }
        arguments.extend(["-o", text(folder.path())]);
        let report = tells(&arguments);
        assert_eq!(report["layers"], json!(5), "{report}");
        let mut model = model.clone();
        model.add_weighted_adapter(&[("first", 0.7), ("second", -0.4)], "sum", &options).unwrap();
        let found = StoredAdapter::open(folder.path()).unwrap().tensors(&Device::Cpu).unwrap();
        // Factors of one product may differ: the products are compared.
        let mut loaded = model.clone();
        loaded.load_adapter(folder.path(), "loaded").unwrap();
        assert_same(&loaded.merged(&["loaded"]), &model.merged(&["sum"]), 1e-4);
        assert_eq!(found.len(), 10);
    }
}

#[test]
fn sums_that_start_from_the_base_model_need_it() {
    let mut model = Model::random(DType::F32);
    let base = model.save();
    let first = model.adapter(&lora().with_dora(true), "first");
    let second = model.adapter(&lora().with_dora(true), "second");
    let folder = tempfile::tempdir().unwrap();
    let arguments =
        ["combine", text(first.path()), text(second.path()), "--type", "linear", "-o", text(folder.path())];
    let error = fails(&arguments, 1);
    assert!(error.contains("base model") && error.contains("help: "), "{error}");
    prints(&[&arguments[..], &["--base", text(base.path())]].concat());
    model
        .add_weighted_adapter(
            &[("first", 1.0), ("second", 1.0)],
            "sum",
            &CombineOptions::new(CombinationType::Linear),
        )
        .unwrap();
    let found = StoredAdapter::open(folder.path()).unwrap().tensors(&Device::Cpu).unwrap();
    assert_same(&found, &model.adapter_state_dict("sum").unwrap(), 1e-5);
    let error = fails(&arguments, 1);
    assert!(error.contains("--force"), "{error}");
    // So does one whose files a killed process has not moved to their places.
    let complete = folder.path().join(".adapter.new");
    std::fs::create_dir(&complete).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::rename(folder.path().join(file), complete.join(file)).unwrap();
    }
    let error = fails(&arguments, 1);
    assert!(error.contains("--force"), "{error}");
}

#[test]
fn adapters_of_different_models_are_not_combined() {
    let first = Model::random(DType::F32).adapter(&lora(), "first");
    let path = "base_model.model.model.layers.0.self_attn.q_proj";
    let tensors: BTreeMap<String, Tensor> = [
        (format!("{path}.lora_A.weight"), random(&[2, 4])),
        (format!("{path}.lora_B.weight"), random(&[4, 2])),
    ]
    .into();
    let other = tempfile::tempdir().unwrap();
    StoredAdapter::new("other", lora(), tensors).unwrap().save(other.path()).unwrap();
    let output = other.path().join("sum");
    let error = fails(&["combine", text(first.path()), text(other.path()), "-o", text(&output)], 1);
    assert!(error.contains("q_proj") && !output.exists(), "{error}");
}

#[test]
fn every_command_explains_itself() {
    let all = prints(&["--help"]);
    for command in ["inspect", "merge", "combine", "diff", "convert"] {
        assert!(all.contains(command), "{all}");
        let help = prints(&[command, "--help"]);
        assert!(help.contains("Usage: peft") && help.contains("--json"), "{help}");
    }
    assert!(fails(&[], 2).contains("Usage"));
    assert!(fails(&["inspect"], 2).contains("Usage"));
    assert!(fails(&["melt"], 2).contains("melt"));
    assert!(fails(&["combine", "a", "--type", "sum", "-o", "b"], 2).contains("dare_linear"));
}

#[test]
fn a_missing_adapter_is_one_line_of_error_and_one_of_help() {
    let error = fails(&["inspect", "no/such/adapter"], 1);
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 2, "{error}");
    assert!(lines[0].contains("no/such/adapter/adapter_config.json"), "{error}");
    assert!(lines[1].starts_with("help: ") && lines[1].contains("adapter_model.safetensors"), "{error}");
}
