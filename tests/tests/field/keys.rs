//! Keys with the name of an adapter, with wrappers, and with a full copy under several names.

use std::collections::BTreeSet;

use candle_core::Tensor;
use peft_runtime::StoredAdapter;
use peft_runtime::prelude::*;

use crate::case::Case;

/// What is the adapter's of the state dict of a whole model.
const NAMED: [&str; 10] = [
    "c03_default_keys",
    "named_adalora",
    "named_container",
    "named_dora",
    "named_ia3",
    "named_loha",
    "named_lokr",
    "named_lora",
    "named_lora_bias",
    "named_tokens",
];

#[test]
fn files_with_the_adapters_name_in_their_keys_are_read_as_peft_meant_them() {
    for name in NAMED {
        let case = Case::open(name);
        if name == "named_lora_bias" {
            // The bias of B has no place in a base without biases: it can be loaded and not merged.
            case.check(&case.loaded(case.folder().path(), "chat").0, "loaded");
            continue;
        }
        case.check_files();
    }
}

#[test]
fn state_dicts_with_the_adapters_name_in_their_keys_are_read_as_peft_meant_them() {
    for name in NAMED.into_iter().filter(|name| *name != "named_tokens") {
        let case = Case::open(name);
        let mut model = case.model();
        let injected = model.inject_adapter_from_state_dict(&case.state, case.config().method(), "x");
        injected.unwrap_or_else(|error| panic!("{name}: {}", error.chain()));
        case.check(&model, "injected");
    }
    for name in NAMED {
        let case = Case::open(name);
        let mut model = case.model();
        model.inject_adapter(case.config().method(), "x").unwrap();
        let loaded = model.load_adapter_state_dict(&case.state, "x");
        loaded.unwrap_or_else(|error| panic!("{name}: {}", error.chain()));
        case.check(&model, "with its state dict loaded");
    }
}

#[test]
fn what_is_read_is_written_under_pefts_keys() {
    for name in NAMED {
        let case = Case::open(name);
        let keys = |stored: &StoredAdapter| -> BTreeSet<String> {
            stored.shapes().into_iter().map(|shape| shape.key).collect()
        };
        let own = keys(&StoredAdapter::open(case.folder().path()).unwrap());
        assert!(own.iter().all(|key| !key.contains("sql-expert") && !key.contains(".default")), "{own:?}");
        let (model, _) = case.loaded(case.folder().path(), "chat");
        let written = model.adapter_state_dict("chat").unwrap();
        // With an adapter on the embedding, PEFT's file has the embedding too.
        assert!(own.iter().all(|key| written.contains_key(key)), "{name}: {own:?}");
    }
}

#[test]
fn wrappers_of_the_model_are_no_part_of_a_path() {
    let prefix = "base_model.model.";
    let wrappers: [(&str, &str); 7] = [
        (prefix, ""),
        (prefix, "_orig_mod.base_model.model."),
        (prefix, "base_model.model._orig_mod."),
        (prefix, "module.base_model.model."),
        (prefix, "base_model.model.base_model.model."),
        (prefix, "base_model.model.module."),
        ("base_model.model.model.layers.0.", "base_model.model.model.layers.0._orig_mod."),
    ];
    for (from, to) in wrappers {
        for name in ["c03_default_keys", "named_dora", "named_lora"] {
            let case = Case::open(name).renamed(|key| key.replacen(from, to, 1));
            let folder = case.folder();
            case.check(&case.loaded(folder.path(), "chat").0, &format!("loaded, with `{to}`"));
            case.check(
                &case.merged(StoredAdapter::open(folder.path()).unwrap()),
                &format!("merged, with `{to}`"),
            );
            let mut model = case.model();
            model.inject_adapter_from_state_dict(&case.state, case.config().method(), "x").unwrap();
            case.check(&model, &format!("injected, with `{to}`"));
        }
    }
}

#[test]
fn of_a_full_copy_under_several_names_the_one_counts_that_counts_in_peft() {
    for name in ["c13_auto_saved", "c46_original_module", "resized_tokens"] {
        let case = Case::open(name);
        case.check_files();
        if name != "resized_tokens" {
            let mut model = case.model();
            model.inject_adapter_from_state_dict(&case.state, case.config().method(), "x").unwrap();
            case.check(&model, "injected");
        }
        let mut model = case.model();
        model.inject_adapter(case.config().method(), "x").unwrap();
        model.load_adapter_state_dict(&case.state, "x").unwrap();
        case.check(&model, "with its state dict loaded");
    }
}

#[test]
fn copies_that_differ_count_as_in_peft_and_the_original_changes_nothing() {
    let mut case = Case::open("c13_auto_saved");
    for (key, tensor) in &mut case.state {
        if key.contains("modules_to_save") || key.contains("original_module") {
            *tensor = tensor.ones_like().unwrap();
        }
    }
    case.check_files();
    let stored = StoredAdapter::open(case.folder().path()).unwrap();
    assert_eq!(
        stored.superseded(),
        [
            "base_model.model.lm_head.modules_to_save.weight",
            "base_model.model.lm_head.original_module.weight",
            "base_model.model.model.embed_tokens.modules_to_save.weight",
            "base_model.model.model.embed_tokens.original_module.weight",
        ]
    );
    let (mut model, _) = case.loaded(case.folder().path(), "chat");
    model.disable_adapters();
    let base = case.model();
    let logits = |model: &peft_runtime::models::llama::LlamaModel| -> Vec<f32> {
        let logits: Tensor = model.forward(&case.ids(), None).unwrap();
        logits.flatten_all().unwrap().to_vec1().unwrap()
    };
    assert_eq!(logits(&model), logits(&base));
}

#[test]
fn an_original_without_a_copy_is_refused() {
    let mut case = Case::open("c46_original_module");
    case.state.remove("base_model.model.lm_head.modules_to_save.default.weight").unwrap();
    let folder = case.folder();
    let error = case.model().load_adapter(folder.path(), "chat").unwrap_err().chain();
    for part in ["missing: `lm_head.weight`", "unexpected: `lm_head.original_module.weight`"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(StoredAdapter::open(folder.path()).unwrap().layers().is_err());
}

#[test]
fn two_names_of_one_tensor_and_two_adapters_in_one_file_are_errors() {
    let key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight";
    let other = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let mut twice = Case::open("c03_default_keys");
    twice.state.insert(other.to_owned(), twice.state[key].clone());
    let mut two = Case::open("c03_default_keys");
    let tensor = two.state.remove(key).unwrap();
    two.state.insert(key.replace("default", "chat"), tensor);
    for (case, says) in [(twice, "are one tensor under two names"), (two, "keep the keys of one of them")] {
        let folder = case.folder();
        let errors = [
            case.model().load_adapter(folder.path(), "chat").unwrap_err(),
            StoredAdapter::open(folder.path()).unwrap_err(),
            StoredAdapter::new("x", case.config(), case.state.clone()).unwrap_err(),
            case.model()
                .inject_adapter_from_state_dict(&case.state, case.config().method(), "x")
                .unwrap_err(),
        ];
        for error in errors.map(|error| error.chain()) {
            assert!(error.contains(says), "{error}");
        }
    }
}

#[test]
fn tensors_inside_of_a_layer_that_are_none_of_its_methods_are_refused() {
    let mut case = Case::open("c03_default_keys");
    let tensor = case.state.values().next().unwrap().clone();
    case.state.insert("base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight".to_owned(), tensor);
    let folder = case.folder();
    let stored = StoredAdapter::open(folder.path()).unwrap();
    for error in [case.model().load_adapter(folder.path(), "chat").unwrap_err(), stored.layers().unwrap_err()]
    {
        let error = error.chain();
        assert!(error.contains("unexpected: `model.layers.0.self_attn.q_proj.lora_C.weight`"), "{error}");
    }
}
