//! `peft inspect`.

use candle_core::{DType, Device};
use peft_runtime::StoredAdapter;
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;
use serde_json::json;

use crate::fixture::{Model, json_of, lora, output_of, run, text};

#[test]
fn ranks_scalings_and_norms_are_shown() {
    let mut model = Model::random(DType::F32);
    let config = lora().with_rank_pattern([("layers.1.self_attn.o_proj", 4)]).with_base_model("org/base");
    let adapter = model.adapter(&config, "default");
    let report = json_of(&["inspect", text(adapter.path())]);
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
    let table = output_of(&["inspect", text(adapter.path())]);
    assert!(table.contains("2 (3 layers), 4 (1 layer)") && table.contains("‖ΔW‖"), "{table}");
}

#[test]
fn zeros_and_values_that_are_not_finite_are_warnings() {
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
    let output = run(&["inspect", text(folder.path())]);
    let warnings = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success());
    assert_eq!(warnings.lines().count(), 2, "{warnings}");
    assert!(warnings.contains("q_proj.lora_B.weight` is zero everywhere"), "{warnings}");
    assert!(warnings.contains("o_proj.lora_A.weight` has 16 values"), "{warnings}");
}

#[test]
fn every_method_can_be_inspected_and_drawn() {
    let all: Vec<Box<dyn AdapterMethod>> = vec![
        Box::new(lora().with_dora(true)),
        Box::new(lora().with_init(LoraInit::Pissa)),
        Box::new(lora().with_modules_to_save(["lm_head"]).with_trainable_tokens([1u32, 4])),
        Box::new(AdaLoraConfig::new(3, 2, 10).with_init(false).with_targets(["q_proj"])),
        Box::new(Ia3Config::new().with_targets(["q_proj", "o_proj"]).with_feedforward(["o_proj"])),
    ];
    for config in all {
        let adapter = Model::random(DType::F32).adapter(config.as_ref(), "default");
        let picture = adapter.path().join("norms.png");
        let printed = output_of(&["inspect", text(adapter.path()), "--plot", text(&picture)]);
        assert!(printed.contains("model.layers.1.self_attn.q_proj"), "{printed}");
        let bytes = std::fs::read(&picture).unwrap();
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 1000);
    }
}

#[test]
fn patterns_without_effect_and_tensors_that_are_not_read_are_warnings() {
    let mut model = Model::random(DType::F32);
    let (base, adapter) = (model.save(), model.adapter(&lora().with_modules_to_save(["lm_head"]), "default"));
    let config = adapter.path().join("adapter_config.json");
    let text_of_config = std::fs::read_to_string(&config).unwrap();
    let slip = text_of_config.replace(r#""alpha_pattern": {}"#, r#""alpha_pattern": {"q_prj": 4}"#);
    std::fs::write(&config, slip).unwrap();
    let weights = adapter.path().join("adapter_model.safetensors");
    let mut tensors = StoredAdapter::open(adapter.path()).unwrap().tensors(&Device::Cpu).unwrap();
    let copy = tensors["base_model.model.lm_head.weight"].clone();
    tensors.insert("base_model.model.lm_head.original_module.weight".to_owned(), copy);
    std::fs::write(&weights, safetensors::serialize(tensors.iter(), None).unwrap()).unwrap();

    let inspected = String::from_utf8(run(&["inspect", text(adapter.path())]).stderr).unwrap();
    let pattern = "`alpha_pattern` holds `q_prj`, which matches nothing, and has no effect";
    assert!(inspected.contains(pattern), "{inspected}");
    assert!(inspected.contains("`base_model.model.lm_head.original_module.weight`"), "{inspected}");
    let output = adapter.path().join("merged");
    let merged =
        run(&["merge", "--base", text(base.path()), "--adapter", text(adapter.path()), "-o", text(&output)]);
    let warnings = String::from_utf8(merged.stderr).unwrap();
    assert!(merged.status.success() && warnings.contains(pattern), "{warnings}");
}
