//! Values of configs that PEFT reads as off, values of the wrong type, and patterns that match nothing.

use std::path::Path;

use peft_runtime::prelude::*;
use peft_runtime::{Error, PeftConfig, StoredAdapter};
use serde_json::{Value, json};

use crate::case::{Case, TOLERANCE};

/// The adapters in a file with PEFT's keys, one of each method.
const METHODS: [&str; 5] =
    ["c29_string_layers_pattern", "c47_ia3_null", "named_loha", "named_lokr", "named_adalora"];

fn error_of(case: &Case) -> String {
    let folder = case.folder();
    let error = case.model().load_adapter(folder.path(), "chat").unwrap_err().chain();
    assert_eq!(StoredAdapter::open(folder.path()).unwrap_err().chain(), error);
    error
}

/// What PEFT 0.21.2 loads as if it were not set: null in any switch, and what else Python takes for false in the fields of
/// which PEFT asks only that. In a file of each method, the fields that the method has.
fn values_that_are_off() -> Vec<(&'static str, Vec<Value>)> {
    let falsy = || vec![json!(null), json!(false), json!(0), json!(""), json!([]), json!({})];
    let null = || vec![json!(null)];
    let mut all = Vec::new();
    for switch in [
        "fan_in_fan_out",
        "use_rslora",
        "use_dora",
        "lora_bias",
        "inference_mode",
        "use_qalora",
        "ensure_weight_tying",
        "init_lora_weights",
        "init_ia3_weights",
        "init_weights",
        "use_effective_conv2d",
        "decompose_both",
        "rank_dropout_scale",
    ] {
        all.push((switch, falsy()));
    }
    for list in [
        "layers_pattern",
        "layer_replication",
        "megatron_config",
        "alora_invocation_tokens",
        "monteclora_config",
    ] {
        all.push((list, falsy()));
    }
    for modules in ["exclude_modules", "modules_to_save"] {
        all.push((modules, vec![json!(null), json!(false), json!(""), json!([])]));
    }
    for text in ["revision", "base_model_name_or_path", "peft_version"] {
        all.push((text, vec![json!(null), json!(""), json!(false)]));
    }
    let others =
        ["auto_mapping", "loftq_config", "megatron_core", "qalora_group_size", "task_type", "velora_config"];
    let numbers = ["rank_dropout", "module_dropout", "beta1", "beta2", "deltaT", "target_r"];
    all.extend(others.into_iter().chain(numbers).map(|field| (field, null())));
    all.push(("qalora_group_size", vec![json!(32), json!("16")]));
    all.push(("megatron_core", vec![json!("megatron.core.other"), json!(7)]));
    all.push(("corda_config", vec![json!({}), json!({"corda_method": "ipm"})]));
    all.push(("lora_ga_config", vec![json!({}), json!({"direction": "ArB2r"})]));
    all.push(("trainable_token_indices", vec![json!(null), json!({})]));
    all.push(("layers_to_transform", vec![json!(null), json!([])]));
    all
}

#[test]
fn what_peft_reads_as_off_is_off() {
    for name in METHODS {
        let case = Case::open(name);
        let expected = PeftConfig::from_json(&case.config.to_string()).unwrap();
        let fields = case.config.as_object().unwrap().clone();
        for (field, values) in
            values_that_are_off().into_iter().filter(|(field, _)| fields.contains_key(*field))
        {
            for value in values {
                let case = Case::open(name).with_field(field, value.clone());
                let read = PeftConfig::from_json(&case.config.to_string());
                let read =
                    read.unwrap_or_else(|error| panic!("{name}, {field} = {value}: {}", error.chain()));
                assert_eq!(
                    read.method().selection().modules_to_save,
                    expected.method().selection().modules_to_save
                );
                // The rest of what it says shows in what the adapter computes.
                case.check(&case.loaded(case.folder().path(), "chat").0, &format!("with {field} = {value}"));
            }
        }
    }
}

#[test]
fn configs_as_axolotl_and_others_write_them_are_read() {
    for name in ["c01_axolotl_null", "c29_string_layers_pattern", "c47_ia3_null"] {
        Case::open(name).check_files();
    }
}

#[test]
fn configs_of_old_versions_of_peft_are_read() {
    // Those of 0.2 and 0.3 have no field for a rank of single layers and no version, and others that PEFT does not know any more.
    let config = json!({
        "base_model_name_or_path": "acme/tiny", "bias": "none", "enable_lora": null, "fan_in_fan_out": false,
        "inference_mode": true, "lora_alpha": 8, "lora_dropout": 0.05, "merge_weights": false, "modules_to_save": null,
        "peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"
    });
    let mut case = Case::open("c01_axolotl_null");
    case.config = config;
    case.check_files();
    let minimal = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]});
    case.config = minimal;
    case.check_files();
}

#[test]
fn a_group_of_settings_that_is_there_and_empty_is_on() {
    // PEFT gives it the default settings: KaSA truncates the weight then.
    for field in ["kasa_config", "use_bdlora", "arrow_config"] {
        let error = error_of(&Case::open("c29_string_layers_pattern").with_field(field, json!({})));
        assert!(error.contains(&format!("`{field}` = {{}} is not supported")), "{error}");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_said_with_its_field() {
    let cases: [(&str, &str, Value, &str); 9] = [
        ("c01_axolotl_null", "lora_alpha", json!("sixteen"), "expected f64"),
        ("c01_axolotl_null", "r", json!(4.5), "expected usize"),
        ("c01_axolotl_null", "r", json!(null), "expected usize"),
        ("c01_axolotl_null", "lora_dropout", json!(null), "expected f64"),
        ("c01_axolotl_null", "use_rslora", json!("false"), "expected true or false"),
        ("c01_axolotl_null", "bias", json!("some"), "expected one of `none`, `all`, `lora_only`"),
        ("c47_ia3_null", "feedforward_modules", json!(3), "neither a list of names nor a string"),
        ("named_loha", "alpha", json!([]), "expected f64"),
        ("named_adalora", "init_r", json!("2"), "expected usize"),
    ];
    for (name, field, value, says) in cases {
        let error = error_of(&Case::open(name).with_field(field, value.clone()));
        for part in ["adapter_config.json", &format!("`{field}` = {value} cannot be read"), says] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
    let error = error_of(&Case::open("c01_axolotl_null").with_field("init_lora_weights", json!("piza")));
    assert!(
        error.contains("`init_lora_weights` = \"piza\"") && error.contains("supported are true"),
        "{error}"
    );
}

#[test]
fn a_config_without_a_method_says_what_is_missing() {
    for value in [None, Some(json!(null)), Some(json!(""))] {
        let mut case = Case::open("c01_axolotl_null");
        let fields = case.config.as_object_mut().unwrap();
        fields.remove("peft_type").unwrap();
        fields.extend(value.map(|value| ("peft_type".to_owned(), value)));
        let error = error_of(&case);
        assert!(error.contains("it has no `peft_type`") && error.contains("`LORA`"), "{error}");
    }
}

/// The warnings of a report, and what it prints.
fn load(case: &Case) -> (Vec<(String, String)>, String) {
    let (model, report) = case.loaded(case.folder().path(), "chat");
    case.check(&model, "loaded");
    let unmatched = report.injection.unmatched_patterns.iter();
    (unmatched.map(|one| (one.field.to_owned(), one.pattern.clone())).collect(), report.to_string())
}

#[test]
fn a_pattern_of_a_file_that_matches_nothing_is_a_line_in_the_report() {
    let case = Case::open("c42_pattern_nomatch").with_field("exclude_modules", json!(["k_prj"]));
    let (unmatched, text) = load(&case);
    let expected = [("alpha_pattern", "v_prj"), ("exclude_modules", "k_prj")];
    assert_eq!(unmatched, expected.map(|(field, pattern)| (field.to_owned(), pattern.to_owned())));
    for part in ["`alpha_pattern` holds `v_prj`, which matches nothing", "`exclude_modules` holds `k_prj`"] {
        assert!(text.contains(part), "{text}");
    }
    let stored = StoredAdapter::open(case.folder().path()).unwrap();
    let unmatched = stored.unmatched_patterns().unwrap();
    assert_eq!(unmatched.iter().map(|one| one.pattern.as_str()).collect::<Vec<_>>(), ["v_prj"]);
    case.check(&case.merged(stored), "merged");
    let right =
        case.with_field("alpha_pattern", json!({"v_proj": 8})).with_field("exclude_modules", json!("k_proj"));
    let right = right.with_field("exclude_modules", json!(["k_proj"]));
    assert_eq!(load(&right).0, []);
}

#[test]
fn a_pattern_from_code_that_matches_nothing_is_a_fault_with_the_nearest_names() {
    let lora = || LoraConfig::new(4, 8.0).with_targets(["q_proj", "v_proj"]);
    let cases: [(Box<dyn peft_runtime::adapter::AdapterMethod>, &str, &str); 6] = [
        (Box::new(lora().with_rank_pattern([("q_prj", 2)])), "`rank_pattern` holds `q_prj`", "`q_proj`"),
        (
            Box::new(lora().with_alpha_pattern([("^v_prj", 2.0)])),
            "`alpha_pattern` holds `^v_prj`",
            "`v_proj`",
        ),
        (Box::new(lora().with_exclude_modules(["k_prj"])), "`exclude_modules` holds `k_prj`", "`k_proj`"),
        (
            Box::new(lora().with_exclude_modules(TargetModules::regex("k_proj"))),
            "`exclude_modules` holds",
            "matches nothing",
        ),
        (
            Box::new(LohaConfig::new(4, 8.0).with_targets(["q_proj"]).with_rank_pattern([("q_prj", 2)])),
            "`rank_pattern` holds `q_prj`",
            "`q_proj`",
        ),
        (
            Box::new(LokrConfig::new(4, 8.0).with_targets(["q_proj"]).with_alpha_pattern([("q_prj", 2.0)])),
            "`alpha_pattern` holds `q_prj`",
            "`q_proj`",
        ),
    ];
    for (config, says, nearest) in cases {
        let mut model = Case::open("base").model();
        let error = model.inject_adapter(config.as_ref(), "chat").unwrap_err();
        assert!(matches!(error, Error::Plan { .. }));
        let error = error.to_string();
        assert!(error.contains(says) && error.contains(nearest), "{error}");
    }
}

fn write_steps(folder: &Path) {
    let mut step = Case::open("o02_step");
    for tensor in step.state.values_mut() {
        *tensor = (&*tensor * 0.5).unwrap();
    }
    step.write(&folder.join("checkpoint-100"));
    step.write(&folder.join("checkpoint-2000"));
}

#[test]
fn the_folder_of_a_trainer_is_the_adapter_in_the_folder_itself() {
    let case = Case::open("o02_trainer_layout");
    let folder = case.folder();
    write_steps(folder.path());
    for name in ["default", "chat"] {
        case.check(&case.loaded(folder.path(), name).0, "loaded");
    }
    let (step, _) = case.loaded(folder.path(), "checkpoint-100");
    let logits = step.forward(&case.ids(), None).unwrap();
    let other = peft_tests::tensors::distance(&logits, &case.tensor("logits")).unwrap();
    assert!(other > TOLERANCE.atol, "a step that is asked for is another adapter");
    // Other folders are other adapters, each with its name.
    case.write(&folder.path().join("code"));
    let error = case.model().load_adapter(folder.path(), "chat").unwrap_err().chain();
    assert!(error.contains("no adapter named `chat`") && error.contains("`code`"), "{error}");
}

#[test]
fn a_folder_with_nothing_but_checkpoints_says_which_there_are() {
    let folder = tempfile::tempdir().unwrap();
    write_steps(folder.path());
    let case = Case::open("o02_trainer_layout");
    for error in [
        case.model().load_adapter(folder.path(), "chat").unwrap_err(),
        StoredAdapter::open(folder.path()).unwrap_err(),
    ] {
        let error = error.chain();
        assert!(error.contains("`checkpoint-100`") && error.contains("`checkpoint-2000`"), "{error}");
    }
}

#[test]
fn files_that_are_something_else_are_called_by_what_they_are() {
    let case = Case::open("c01_axolotl_null");
    let folder = case.folder();
    let weights = folder.path().join("adapter_model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    let pickle: &[u8] = b"\x80\x02}q\x00.";
    let cases: [(&[u8], &str); 7] = [
        (crate::case::text("c07_lfs").as_bytes(), "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"", "it is empty"),
        (b"PK\x03\x04\0\0\0\0\0\0", "torch saved: the archive is damaged"),
        (pickle, "a pickle"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "a GGUF file that is damaged"),
        (&whole[..whole.len() - 100], "was cut off"),
    ];
    for (bytes, says) in cases {
        std::fs::write(&weights, bytes).unwrap();
        let error = case.model().load_adapter(folder.path(), "chat").unwrap_err().chain();
        assert!(error.contains("adapter_model.safetensors") && error.contains(says), "{says}: {error}");
        assert!(StoredAdapter::open(folder.path()).unwrap_err().chain().contains(says));
    }
    std::fs::write(folder.path().join("adapter_config.json"), "<html>404</html>").unwrap();
    let error = case.model().load_adapter(folder.path(), "chat").unwrap_err().chain();
    assert!(error.contains("adapter_config.json") && error.contains("a web page"), "{error}");
}
