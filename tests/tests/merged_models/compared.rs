//! A merged folder compared with base model and adapters by what they compute.

use std::path::Path;

use candle_core::{Device, Tensor};
use peft_runtime::models::{Comparison, compare_merged};
use peft_runtime::{Error, ModelWeights};
use serde_json::json;

use crate::fixture::{Case, write};

fn compare(case: &Case, merged: &Path) -> peft_runtime::Result<Comparison> {
    compare_merged(case.base.path(), &[(&case.stored(), 1.0)], merged)
}

#[test]
fn merged_models_are_the_same_and_how_much_that_says_is_known() {
    for name in ["square_lora", "square_dora", "llama_tied_head", "gpt2_embedding", "llama_tied_tokens"] {
        let case = Case::read(name);
        let Comparison::Same(close) = compare(&case, case.written().path()).unwrap() else {
            panic!("{name}")
        };
        assert!(close.difference <= close.tolerance && close.effect > 0.01, "{name}: {close:?}");
    }
}

#[test]
fn a_resized_vocabulary_is_compared_with_its_new_tokens() {
    for name in ["resized", "resized_tied", "resized_gpt2_saved"] {
        let case = Case::read(name);
        match compare(&case, case.written().path()).unwrap() {
            Comparison::Same(close) => assert!(close.difference <= close.tolerance, "{name}: {close:?}"),
            other => panic!("{name}: {other:?}"),
        }
        // The rows of new tokens count.
        let folder = case.written();
        let weights = ModelWeights::open(folder.path()).unwrap();
        let read = |name: &str| (name.to_owned(), weights.tensor(name, &Device::Cpu).unwrap());
        let mut tensors: std::collections::BTreeMap<_, _> = weights.names().map(read).collect();
        let embeddings = tensors.keys().find(|name| name.contains("embed_tokens") || name.contains("wte"));
        let embeddings = embeddings.unwrap().clone();
        let table = &tensors[&embeddings];
        let last = (table.get_on_dim(0, 22).unwrap() * -2.0).unwrap().unsqueeze(0).unwrap();
        let changed = Tensor::cat(&[&table.narrow(0, 0, 22).unwrap(), &last], 0).unwrap();
        tensors.insert(embeddings, changed);
        write(folder.path(), "model.safetensors", &tensors);
        let error = compare(&case, folder.path()).unwrap_err();
        assert!(matches!(error, Error::Verification { .. }), "{name}: {error}");
    }
}

#[test]
fn a_wrong_merge_is_found() {
    let case = Case::read("square_lora");
    let folder = case.written();
    let weights = ModelWeights::open(folder.path()).unwrap();
    let name = "transformer.h.0.attn.c_proj.weight";
    let read = |name: &str| (name.to_owned(), weights.tensor(name, &Device::Cpu).unwrap());
    let mut tensors: std::collections::BTreeMap<_, _> = weights.names().map(read).collect();
    // The update, the other way round.
    let own = crate::fixture::tensors("base/gpt2_untied/")[name].clone();
    let update = (&tensors[name] - &own).unwrap().t().unwrap().contiguous().unwrap();
    tensors.insert(name.to_owned(), (own + update).unwrap());
    write(folder.path(), "model.safetensors", &tensors);
    let error = compare(&case, folder.path()).unwrap_err();
    assert!(matches!(error, Error::Verification { .. }), "{error}");
    // The base model itself is not the merged one.
    assert!(compare(&case, case.base.path()).is_err());
}

#[test]
fn why_nothing_was_compared_is_said() {
    let case = Case::read("square_lora");
    let folder = case.written();
    case.configure(|config| config["model_type"] = json!("mamba"));
    let Comparison::NotCompared(reason) = compare(&case, folder.path()).unwrap() else { panic!() };
    assert!(reason.contains("mamba"), "{reason}");
    std::fs::remove_file(case.base.path().join("config.json")).unwrap();
    let Comparison::NotCompared(reason) = compare(&case, folder.path()).unwrap() else { panic!() };
    assert!(reason.contains("config.json"), "{reason}");
}
