//! Folders that `MergedWeights` writes.

use candle_core::{DType, Device, Tensor};
use candle_nn::var_builder::SimpleBackend;
use peft_runtime::models::llama::{LlamaConfig, LlamaModel};
use peft_runtime::prelude::*;
use peft_runtime::{MergedWeights, ModelWeights, NameMap, StoredAdapter};
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::random_with;
use serde_json::{Value, json};

use crate::fixture::{Case, Language, read_json};

const TOLERANCE: Tolerance = Tolerance::absolute(1e-4);

/// Layers with a square weight that lies as `[in, out]`, next to a head that does not.
const SQUARE: [&str; 4] = ["square_lora", "square_dora", "square_adalora", "square_ia3"];
/// Adapters on models whose head has the weight of the embeddings, of which they change one.
const PARTED: [&str; 10] = [
    "llama_tied_saved_embedding",
    "llama_tied_saved_head",
    "llama_tied_head",
    "llama_tied_embedding",
    "llama_tied_both",
    "gpt2_saved_embedding",
    "gpt2_saved_head",
    "gpt2_head",
    "gpt2_embedding",
    "gpt2_both",
];
/// Rows of tokens, which change both.
const TOKENS: [&str; 2] = ["llama_tied_tokens", "gpt2_tokens"];

fn check(case: &Case) -> (Value, Vec<String>) {
    let folder = case.written();
    let logits = Language::open(folder.path()).logits(&case.ids());
    assert_close(&logits, &case.logits(), TOLERANCE, case.name);
    let names = ModelWeights::open(folder.path()).unwrap().names().map(str::to_owned).collect();
    (read_json(&folder.path().join("config.json")), names)
}

#[test]
fn square_weights_lie_as_the_type_of_the_model_says() {
    for name in SQUARE {
        let case = Case::read(name);
        let config = read_json(&case.adapter.path().join("adapter_config.json"));
        assert_eq!(config["fan_in_fan_out"], false, "{name}");
        check(&case);
    }
}

#[test]
fn without_the_type_of_the_model_a_square_weight_of_unknown_orientation_is_refused() {
    for name in SQUARE {
        let case = Case::read(name);
        std::fs::remove_file(case.base.path().join("config.json")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let error = case.merged().unwrap().write(folder.path(), &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("attn.c_proj") && error.contains("square"), "{error}");
        let read = case.merged().unwrap().get_unchecked(
            "transformer.h.0.attn.c_proj.weight",
            DType::F32,
            &Device::Cpu,
        );
        assert!(read.is_err());
        // The config may come from elsewhere.
        let base = ModelWeights::open(case.base.path()).unwrap();
        let config = json!({ "model_type": "gpt2", "tie_word_embeddings": false });
        let merged = MergedWeights::with_model_config(base, config).add(case.stored(), 1.0).unwrap();
        merged.write(folder.path(), &mut |_| {}).unwrap();
        std::fs::copy(Case::read(name).base.path().join("config.json"), folder.path().join("config.json"))
            .unwrap();
        let logits = Language::open(folder.path()).logits(&case.ids());
        assert_close(&logits, &case.logits(), TOLERANCE, name);
    }
}

#[test]
fn a_head_that_differs_from_the_embeddings_is_written_and_the_config_says_so() {
    for name in PARTED {
        let (config, names) = check(&Case::read(name));
        assert_eq!(config["tie_word_embeddings"], false, "{name}");
        assert!(names.contains(&"lm_head.weight".to_owned()), "{name}: {names:?}");
    }
}

#[test]
fn a_config_that_leaves_the_default_of_its_type_out_is_understood() {
    for name in PARTED.into_iter().filter(|name| name.starts_with("gpt2")) {
        let case = Case::read(name);
        case.configure(|config| {
            config.as_object_mut().unwrap().remove("tie_word_embeddings");
        });
        assert_eq!(check(&case).0["tie_word_embeddings"], false, "{name}");
    }
}

#[test]
fn rows_of_tokens_leave_head_and_embeddings_one_tensor() {
    for name in TOKENS {
        let (config, names) = check(&Case::read(name));
        assert_eq!(config["tie_word_embeddings"], true, "{name}");
        assert!(!names.contains(&"lm_head.weight".to_owned()), "{name}");
    }
}

#[test]
fn a_tied_head_that_the_files_have_as_well_changes_with_the_embeddings() {
    for name in ["llama_tied_tokens", "llama_tied_head", "llama_tied_saved_embedding"] {
        let case = Case::read(name);
        let mut tensors = crate::fixture::tensors("base/llama_tied/");
        let table = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".to_owned(), table.clone());
        crate::fixture::write(case.base.path(), "model.safetensors", &tensors);
        let folder = case.written();
        let written = ModelWeights::open(folder.path()).unwrap();
        let read = |name| written.tensor(name, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        let config = read_json(&folder.path().join("config.json"));
        let same = read("lm_head.weight") == read("model.embed_tokens.weight");
        assert_eq!(config["tie_word_embeddings"], same, "{name}");
        let logits = Language::open(folder.path()).logits(&case.ids());
        assert_close(&logits, &case.logits(), TOLERANCE, name);
        if name == "llama_tied_head" {
            tensors.insert("lm_head.weight".to_owned(), (table * 2.0).unwrap());
            crate::fixture::write(case.base.path(), "model.safetensors", &tensors);
            let error = case.merged().unwrap_err().to_string();
            assert!(error.contains("another tensor for each"), "{error}");
        }
    }
}

#[test]
fn an_adapter_of_the_head_is_not_merged_into_the_embeddings() {
    let case = Case::read("llama_tied_head");
    let names = NameMap::new().module("lm_head", "model.embed_tokens");
    let base = ModelWeights::open(case.base.path()).unwrap();
    let error = MergedWeights::new(base).add_renamed(case.stored(), 1.0, &names).unwrap_err().to_string();
    assert!(error.contains("a head of its own"), "{error}");
}

#[test]
fn models_of_unknown_type_go_by_what_their_config_says() {
    for name in ["llama_tied_head", "llama_tied_saved_embedding"] {
        let case = Case::read(name);
        case.configure(|config| config["model_type"] = json!("mine"));
        let folder = case.written();
        let path = folder.path().join("config.json");
        let mut config = read_json(&path);
        assert_eq!(config["tie_word_embeddings"], false);
        config["model_type"] = json!("llama");
        std::fs::write(path, config.to_string()).unwrap();
        let logits = Language::open(folder.path()).logits(&case.ids());
        assert_close(&logits, &case.logits(), TOLERANCE, name);
        case.configure(|config| {
            config.as_object_mut().unwrap().remove("tie_word_embeddings");
        });
        let error = case.merged().unwrap_err().to_string();
        assert!(error.contains("tie_word_embeddings"), "{error}");
    }
}

#[test]
fn a_model_that_is_loaded_with_one_tensor_for_two_is_an_error_of_finish() {
    let case = Case::read("llama_tied_saved_embedding");
    let config: LlamaConfig =
        serde_json::from_value(read_json(&case.base.path().join("config.json"))).unwrap();
    let merged = case.merged().unwrap();
    let tied = LlamaModel::new(&config, merged.var_builder(DType::F32, &Device::Cpu)).unwrap();
    let error = merged.finish().unwrap_err().to_string();
    assert!(error.contains("tie_word_embeddings"), "{error}");
    assert!(tied.config().tie_word_embeddings);
    let mut apart = config.clone();
    apart.tie_word_embeddings = false;
    let merged = case.merged().unwrap();
    let model = LlamaModel::new(&apart, merged.var_builder(DType::F32, &Device::Cpu)).unwrap();
    merged.finish().unwrap();
    assert_close(&model.forward(&case.ids(), None).unwrap(), &case.logits(), TOLERANCE, case.name);
}

#[test]
fn the_config_has_the_new_size_of_a_resized_vocabulary() {
    for name in ["resized", "resized_tied", "resized_gpt2_saved"] {
        let case = Case::read(name);
        let (config, _) = check(&case);
        assert_eq!(config["vocab_size"], 23, "{name}");
        assert_eq!(config["tie_word_embeddings"], name == "resized_tied", "{name}");
    }
    let case = Case::read("resized");
    case.configure(|config| {
        let size = config.as_object_mut().unwrap().remove("vocab_size").unwrap();
        config["text_config"] = json!({ "vocab_size": size });
        config["vision_config"] = json!({ "vocab_size": 7 });
    });
    let config = read_json(&case.written().path().join("config.json"));
    assert_eq!(
        (&config["text_config"]["vocab_size"], &config["vision_config"]["vocab_size"]),
        (&json!(23), &json!(7))
    );
    case.configure(|config| config["text_config"]["vocab_size"] = json!(19));
    let folder = tempfile::tempdir().unwrap();
    let error = case.merged().unwrap().write(folder.path(), &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("vocab_size") && error.contains("23"), "{error}");
}

#[test]
fn embeddings_that_grow_without_the_head_are_refused() {
    let case = Case::read("resized");
    let mut tensors = crate::fixture::tensors("resized/adapter/");
    tensors.remove("base_model.model.lm_head.weight").unwrap();
    crate::fixture::write(case.adapter.path(), "adapter_model.safetensors", &tensors);
    let folder = tempfile::tempdir().unwrap();
    let error = case.merged().unwrap().write(folder.path(), &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("23") && error.contains("lm_head") && error.contains("resized"), "{error}");
}

#[test]
fn parts_of_a_fused_weight_are_rows_of_it_also_where_they_are_square() {
    let folder = tempfile::tempdir().unwrap();
    let weight = random_with(&[12, 4], 1.0);
    let tensors = [("attn.qkv.weight".to_owned(), weight.clone())].into();
    crate::fixture::write(folder.path(), "model.safetensors", &tensors);
    let parts = ["q", "k", "v"].map(|part| (part, random_with(&[4, 1], 1.0)));
    let vectors =
        parts.iter().map(|(part, vector)| (format!("base_model.model.attn.{part}.ia3_l"), vector.clone()));
    let config = Ia3Config::new().with_targets(["q", "k", "v"]).with_feedforward(Vec::<String>::new());
    let adapter = StoredAdapter::new("parts", config, vectors.collect()).unwrap();
    let names = NameMap::new().rows("attn.q", "attn.qkv", 0..4).rows("attn.k", "attn.qkv", 4..8).rows(
        "attn.v",
        "attn.qkv",
        8..12,
    );
    let base = ModelWeights::open(folder.path()).unwrap();
    let merged = MergedWeights::new(base).add_renamed(adapter, 1.0, &names).unwrap();
    let found = merged.get_unchecked("attn.qkv.weight", DType::F32, &Device::Cpu).unwrap();
    let scale = Tensor::cat(&parts.map(|(_, vector)| vector), 0).unwrap();
    let expected = weight.broadcast_mul(&scale).unwrap();
    assert_close(&found, &expected, Tolerance::absolute(1e-6), "qkv");
}
