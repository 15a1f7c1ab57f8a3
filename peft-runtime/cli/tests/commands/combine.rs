//! `peft combine`.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use peft_runtime::StoredAdapter;
use peft_runtime::prelude::*;
use serde_json::json;

use crate::fixture::{Model, assert_same, error_of, json_of, lora, output_of, random, text};

#[test]
fn every_combination_is_the_one_a_model_makes() {
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
        let report = json_of(&arguments);
        assert_eq!(report["layers"], json!(5), "{report}");
        let mut model = model.clone();
        model.add_weighted_adapter(&[("first", 0.7), ("second", -0.4)], "sum", &options).unwrap();
        let found = StoredAdapter::open(folder.path()).unwrap().tensors(&Device::Cpu).unwrap();
        // Different factors can give the same product, so the products are compared.
        let mut loaded = model.clone();
        loaded.load_adapter(folder.path(), "loaded").unwrap();
        assert_same(&loaded.merged(&["loaded"]), &model.merged(&["sum"]), 1e-4);
        assert_eq!(found.len(), 10);
    }
}

#[test]
fn combinations_that_start_from_the_base_model_need_it() {
    let mut model = Model::random(DType::F32);
    let base = model.save();
    let first = model.adapter(&lora().with_dora(true), "first");
    let second = model.adapter(&lora().with_dora(true), "second");
    let folder = tempfile::tempdir().unwrap();
    let arguments =
        ["combine", text(first.path()), text(second.path()), "--type", "linear", "-o", text(folder.path())];
    let error = error_of(&arguments, 1);
    assert!(error.contains("DoRA gives the weight a trained magnitude"), "{error}");
    let arguments = [&arguments[..], &["--restart"]].concat();
    let error = error_of(&arguments, 1);
    assert!(error.contains("base model") && error.contains("help: "), "{error}");
    output_of(&[&arguments[..], &["--base", text(base.path())]].concat());
    model
        .add_weighted_adapter(
            &[("first", 1.0), ("second", 1.0)],
            "sum",
            &CombineOptions::new(CombinationType::Linear).with_restarts(true),
        )
        .unwrap();
    let found = StoredAdapter::open(folder.path()).unwrap().tensors(&Device::Cpu).unwrap();
    assert_same(&found, &model.adapter_state_dict("sum").unwrap(), 1e-5);
    let error = error_of(&arguments, 1);
    assert!(error.contains("--force"), "{error}");
    // So does an adapter whose files a killed process had not yet moved into place.
    let complete = folder.path().join(".adapter.new");
    std::fs::create_dir(&complete).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::rename(folder.path().join(file), complete.join(file)).unwrap();
    }
    let error = error_of(&arguments, 1);
    assert!(error.contains("--force"), "{error}");
}

#[test]
fn full_copies_and_biases_need_no_base_model() {
    let mut model = Model::random(DType::F32);
    let copying = lora().with_targets(["q_proj"]).with_modules_to_save(["lm_head"]);
    let first = model.adapter(&lora().with_targets(["q_proj"]).with_lora_bias(true), "first");
    let second = model.adapter(&copying, "second");
    let folder = tempfile::tempdir().unwrap();
    let paths = [text(first.path()), text(second.path())];
    output_of(&[&["combine"], &paths[..], &["--type", "cat", "-o", text(folder.path())]].concat());
    let options = CombineOptions::new(CombinationType::Cat);
    model.add_weighted_adapter(&[("first", 1.0), ("second", 1.0)], "sum", &options).unwrap();
    let found = StoredAdapter::open(folder.path()).unwrap().tensors(&Device::Cpu).unwrap();
    assert_same(&found, &model.adapter_state_dict("sum").unwrap(), 1e-5);
    let copy = "base_model.model.lm_head.weight";
    assert_same(
        &BTreeMap::from([(copy.to_owned(), found[copy].clone())]),
        &BTreeMap::from([(copy.to_owned(), model.adapter_state_dict("second").unwrap()[copy].clone())]),
        0.0,
    );
    assert!(found.keys().any(|key| key.ends_with("lora_B.bias")));
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
    let error = error_of(&["combine", text(first.path()), text(other.path()), "-o", text(&output)], 1);
    assert!(error.contains("q_proj") && !output.exists(), "{error}");
}

/// An adapter of one layer with these numbers in B.
fn with_numbers(number: f32) -> tempfile::TempDir {
    let path = "base_model.model.proj";
    let tensors: BTreeMap<String, Tensor> = [
        (format!("{path}.lora_A.weight"), Tensor::full(0.3f32, (2, 4), &Device::Cpu).unwrap()),
        (format!("{path}.lora_B.weight"), Tensor::full(number, (4, 2), &Device::Cpu).unwrap()),
    ]
    .into();
    let folder = tempfile::tempdir().unwrap();
    let config = LoraConfig::new(2, 2.0).with_targets(["proj"]);
    StoredAdapter::new("one", config, tensors).unwrap().save(folder.path()).unwrap();
    folder
}

#[test]
fn the_result_is_rounded_to_the_type_that_is_asked_for() {
    let (first, second) = (with_numbers(0.1), with_numbers(0.7));
    for (name, dtype) in [("bf16", DType::BF16), ("f16", DType::F16), ("f32", DType::F32)] {
        let [plain, rounded] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let arguments = |folder: &tempfile::TempDir| {
            let words = ["combine", text(first.path()), text(second.path()), "--type", "cat", "-o"];
            words.into_iter().chain([text(folder.path())]).map(str::to_owned).collect::<Vec<_>>()
        };
        let run = |words: &[String]| output_of(&words.iter().map(String::as_str).collect::<Vec<_>>());
        run(&arguments(&plain));
        run(&[arguments(&rounded), vec!["--dtype".to_owned(), name.to_owned()]].concat());
        let read = |folder: &tempfile::TempDir| {
            StoredAdapter::open(folder.path()).unwrap().tensors(&Device::Cpu).unwrap()
        };
        let found = read(&rounded);
        assert!(found.values().all(|tensor| tensor.dtype() == dtype), "{name}");
        let expected = read(&plain).into_iter().map(|(key, tensor)| (key, tensor.to_dtype(dtype).unwrap()));
        assert_same(&found, &expected.collect(), 0.0);
    }
}

#[test]
fn an_unknown_type_and_numbers_beyond_a_type_are_refused() {
    let (first, second) = (with_numbers(0.1), with_numbers(7e4));
    let output = first.path().join("sum");
    let words = ["combine", text(first.path()), text(second.path()), "--type", "cat", "-o", text(&output)];
    let error = error_of(&[&words[..], &["--dtype", "half"]].concat(), 2);
    assert!(error.contains("`half`") || error.contains("'half'"), "{error}");
    assert!(error.contains("the types are bf16, f16, f32"), "{error}");
    let error = error_of(&[&words[..], &["--dtype", "f16"]].concat(), 1);
    assert!(error.contains("lora_B.weight") && error.contains("f16") && !output.exists(), "{error}");
}
