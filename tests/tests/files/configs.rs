//! `adapter_config.json`: every field of it, and what is refused.

use std::path::Path;

use peft_runtime::PeftConfig;
use peft_runtime::prelude::*;
use serde_json::{Value, json};

use crate::{edit_config, load_error, lora, model, saved};

#[test]
fn the_config_file_has_every_field_sorted() {
    let (folder, _) =
        saved(&lora().with_dropout(0.1).with_task_type("CAUSAL_LM").with_base_model("org/base"));
    let text = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
    // `LoraConfig(r=2, lora_alpha=4, lora_dropout=0.1, …).save_pretrained` of PEFT 0.21.2.
    let expected = r#"{
  "alora_invocation_tokens": null,
  "alpha_pattern": {},
  "arrow_config": null,
  "auto_mapping": null,
  "base_model_name_or_path": "org/base",
  "bias": "none",
  "corda_config": null,
  "ensure_weight_tying": false,
  "eva_config": null,
  "exclude_modules": null,
  "fan_in_fan_out": false,
  "inference_mode": true,
  "init_lora_weights": true,
  "kasa_config": null,
  "layer_replication": null,
  "layers_pattern": null,
  "layers_to_transform": null,
  "loftq_config": {},
  "lora_alpha": 4,
  "lora_bias": false,
  "lora_dropout": 0.1,
  "lora_ga_config": null,
  "megatron_config": null,
  "megatron_core": "megatron.core",
  "modules_to_save": null,
  "monteclora_config": null,
  "peft_type": "LORA",
  "peft_version": "0.21.2",
  "qalora_group_size": 16,
  "r": 2,
  "rank_pattern": {},
  "revision": null,
  "target_modules": [
    "lin0",
    "lin1"
  ],
  "target_parameters": null,
  "task_type": "CAUSAL_LM",
  "trainable_token_indices": null,
  "use_bdlora": null,
  "use_dora": false,
  "use_qalora": false,
  "use_rslora": false,
  "velora_config": null
}"#;
    assert_eq!(text, expected);
    assert!(
        std::fs::read_to_string(folder.path().join("README.md")).unwrap().contains("base_model: org/base")
    );
}

#[test]
fn unknown_keys_of_a_config_survive_a_round_trip() {
    let (folder, _) = saved(&lora());
    edit_config(folder.path(), |config| {
        config.insert("future_field".into(), json!({"a": [1, 2]}));
        config.insert("peft_version".into(), json!("0.19.0"));
    });
    let mut model = model();
    model.load_adapter(folder.path(), "default").unwrap();
    let again = tempfile::tempdir().unwrap();
    model.save_pretrained(again.path(), "default").unwrap();
    let read = |folder: &Path| -> Value {
        serde_json::from_str(&std::fs::read_to_string(folder.join("adapter_config.json")).unwrap()).unwrap()
    };
    assert_eq!(read(folder.path()), read(again.path()));
}

#[test]
fn switches_that_are_on_and_not_implemented_are_refused_by_name() {
    for (field, value) in [
        ("kasa_config", json!({"beta": 0.1})),
        ("use_qalora", json!(true)),
        ("alora_invocation_tokens", json!([1, 2])),
        ("velora_config", json!({"num_groups": 4})),
        ("megatron_config", json!({"x": 1})),
    ] {
        let (folder, _) = saved(&lora());
        edit_config(folder.path(), |config| drop(config.insert(field.into(), value.clone())));
        let text = load_error(folder.path());
        assert!(text.contains(&format!("`{field}` = {value} is not supported")), "{text}");
        assert!(text.contains("adapter_config.json"), "{text}");
    }
    let (folder, _) = saved(&lora());
    edit_config(folder.path(), |config| drop(config.insert("peft_type".into(), json!("OFT"))));
    let text = load_error(folder.path());
    assert!(text.contains(r#"`peft_type` "OFT" is not supported; supported are `ADALORA`"#), "{text}");
}

#[test]
fn invalid_values_of_a_config_are_named() {
    for (field, value, part) in [
        ("r", json!(0), "invalid `r`: the rank is 0"),
        ("r", json!("4"), "invalid type: string \"4\""),
        ("r", json!(-1), "invalid value"),
        ("lora_dropout", json!(1.0), "invalid `lora_dropout`"),
        ("task_type", json!("SINGING"), "`SINGING` is not one of SEQ_CLS"),
        ("bias", json!("some"), "unknown variant `some`"),
        ("init_lora_weights", json!("magic"), "\"magic\" is not supported"),
        ("layers_pattern", json!("layers"), "does nothing without `layers_to_transform`"),
        ("rank_pattern", json!({"lin0": 0}), "for the pattern `lin0`, the rank is 0"),
    ] {
        let (folder, _) = saved(&lora());
        edit_config(folder.path(), |config| drop(config.insert(field.into(), value)));
        let text = load_error(folder.path());
        assert!(text.contains(part) && text.contains("adapter_config.json"), "{field}: {text}");
    }
}

#[test]
fn a_config_is_read_by_its_method() {
    let config = PeftConfig::from_json(&lora().to_json().unwrap()).unwrap();
    assert_eq!(config.downcast_ref(), Some(&lora()));
    assert!(PeftConfig::from_json("{}").unwrap_err().to_string().contains("it has no `peft_type`"));
}
