//! Single tensors: parts of fused ones, tensors that only an adapter has, tensors that do not fit; and files of tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::Linear;
use candle_nn::var_builder::SimpleBackend;
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use peft_runtime::{Error, MergedWeights, NameMap, SaveEmbeddings};
use peft_tests::close::{Tolerance, assert_close, is_close};
use peft_tests::methods::every_pair;
use peft_tests::specimen::{Kind, Specimen};
use peft_tests::tensors::random_with;
use tempfile::TempDir;

use crate::bases::{
    Memory, everywhere, llama_config, llama_tensors, open, own_llama, own_llama_output, read, saved, sharded,
    stored,
};

const TOLERANCE: Tolerance = Tolerance::absolute(1e-5);

#[test]
fn fused_and_renamed_weights_get_the_parts_that_belong_to_them() {
    let tensors = llama_tensors();
    let base = sharded(&tensors);
    let projections_alone = everywhere().with_exclude_modules(["embed_tokens", "lm_head"]);
    let pissa = everywhere().with_init(LoraInit::Pissa);
    for config in [everywhere(), everywhere().with_dora(true), projections_alone, pissa] {
        let mut own = own_llama(&base);
        let folder = saved(&mut own, &config, "default");
        own.merge_and_unload(&MergeOptions::active()).unwrap();
        let expected = own.base_state_dict();
        let renamed = |name: &str| {
            let name = name.strip_prefix("model.").unwrap_or(name);
            name.replace("self_attn.o_proj", "attention.dense").replace("layers", "h")
        };
        let mut fused: BTreeMap<String, Tensor> = BTreeMap::new();
        let projections = |tensors: &BTreeMap<String, Tensor>, layer: usize| {
            let part =
                |letter: &str| &tensors[&format!("model.layers.{layer}.self_attn.{letter}_proj.weight")];
            Tensor::cat(&[part("q"), part("k"), part("v")], 0).unwrap()
        };
        for (name, tensor) in tensors.iter().filter(|(name, _)| !is_projection(name)) {
            fused.insert(renamed(name), tensor.clone());
        }
        for layer in 0..2 {
            fused.insert(format!("h.{layer}.attention.qkv.weight"), projections(&tensors, layer));
        }
        let names = NameMap::new()
            .prefix("model.layers", "h")
            .prefix("model", "")
            .rows("self_attn.q_proj", "attention.qkv", 0..16)
            .rows("self_attn.k_proj", "attention.qkv", 16..24)
            .rows("self_attn.v_proj", "attention.qkv", 24..32)
            .module("self_attn.o_proj", "attention.dense");
        let merged = MergedWeights::new(Memory::new(fused.clone()))
            .add_renamed(stored(&folder, "default"), 1.0, &names)
            .unwrap();
        for (name, tensor) in expected.iter().filter(|(name, _)| !is_projection(name)) {
            assert_close(
                &read(&merged, &renamed(name)),
                tensor,
                TOLERANCE,
                format_args!("{name} with {:?}", config.init()),
            );
        }
        for layer in 0..2 {
            let found = read(&merged, &format!("h.{layer}.attention.qkv.weight"));
            assert_close(&found, &projections(&expected, layer), TOLERANCE, format_args!("block {layer}"));
        }
        merged.finish().unwrap();
    }
}

#[test]
fn no_adapter_takes_its_part_out_of_what_the_init_of_another_left() {
    let base = sharded(&llama_tensors());
    let mut own = own_llama(&base);
    let pissa = LoraConfig::new(4, 6.0).with_targets(["lm_head"]).with_init(LoraInit::Pissa);
    let with_rest = saved(&mut own, &pissa, "default");
    let alone = tempfile::tempdir().unwrap();
    let no_embeddings = SaveOptions::new().embeddings(SaveEmbeddings::Never);
    own.save_pretrained_with(alone.path(), "default", no_embeddings).unwrap();
    let both = |first: &TempDir, second: &TempDir| {
        let merged = MergedWeights::new(open(&base)).add(stored(first, "default"), 1.0)?;
        merged.add(stored(second, "default"), 1.0)
    };
    refusal(both(&alone, &with_rest).unwrap_err(), &["its init left of `lm_head`"]);
    assert!(both(&with_rest, &alone).is_ok());
}

fn is_projection(name: &str) -> bool {
    ["q_proj", "k_proj", "v_proj"].iter().any(|projection| name.contains(projection))
}

#[test]
fn one_tensor_is_read_at_a_time_and_only_those_that_are_needed() {
    let base = sharded(&llama_tensors());
    let folder = saved(&mut own_llama(&base), &LoraConfig::new(4, 6.0).with_targets(["q_proj"]), "default");
    let memory = Memory::new(llama_tensors());
    let log = Arc::clone(&memory.read);
    let merged = MergedWeights::new(memory).add(stored(&folder, "default"), 1.0).unwrap();
    assert!(log.lock().unwrap().is_empty(), "something was read before it was asked for");
    let name = "model.layers.0.self_attn.q_proj.weight";
    read(&merged, name);
    assert_eq!(*log.lock().unwrap(), [name]);
}

#[test]
fn weight_and_bias_of_a_layer_are_merged_together_and_read_once() {
    let mut with_changed_bias = 0;
    for (kind, method) in every_pair().filter(|(kind, method)| method.saves && method.merges(*kind)) {
        let mut model = Specimen::new(kind, DType::F32).unwrap();
        let base = model.base_state_dict();
        let folder = saved(&mut model, &*method.config(), "default");
        model.merge_adapters(&MergeOptions::active()).unwrap();
        let expected = model.merged_state_dict();
        if !expected.contains_key("layer.bias") {
            continue;
        }
        with_changed_bias += usize::from(!is_close(&base["layer.bias"], &expected["layer.bias"], TOLERANCE));
        for names in [["layer.weight", "layer.bias"], ["layer.bias", "layer.weight"]] {
            let what = format!("{} on {kind:?}: {names:?}", method.name);
            let memory = Memory::new(base.clone());
            let log = Arc::clone(&memory.read);
            let merged = MergedWeights::new(memory).add(stored(&folder, "default"), 1.0).unwrap();
            for name in names {
                assert_close(
                    &read(&merged, name),
                    &expected[name],
                    TOLERANCE,
                    format_args!("{what}: {name}"),
                );
            }
            let reads = log.lock().unwrap().clone();
            let names: BTreeSet<&String> = reads.iter().collect();
            assert_eq!(reads.len(), names.len(), "{what} were read as {reads:?}");
        }
    }
    assert!(with_changed_bias > 2, "{with_changed_bias} methods change a bias");
}

#[test]
fn a_bias_requested_in_a_different_dtype_from_its_weight_is_merged_again() {
    let mut model = Specimen::new(Kind::Linear, DType::F32).unwrap();
    let base = Memory::new(model.base_state_dict());
    let config = LoraConfig::new(2, 4.0).with_targets(["layer"]).with_lora_bias(true);
    let folder = saved(&mut model, &config, "default");
    let merged = MergedWeights::new(base).add(stored(&folder, "default"), 1.0).unwrap();
    read(&merged, "layer.weight");
    let bias = merged.get_unchecked("layer.bias", DType::F64, &Device::Cpu).unwrap();
    assert_eq!(bias.dtype(), DType::F64);
}

#[test]
fn merging_while_loading_is_merging_on_every_layer_kind() {
    for (kind, method) in every_pair().filter(|(_, method)| method.saves) {
        let mut model = Specimen::new(kind, DType::F32).unwrap();
        // Before injection: some inits take away a part of the weight.
        let base = Memory::new(model.base_state_dict());
        let folder = saved(&mut model, &*method.config(), "default");
        let merged = MergedWeights::new(base).add(stored(&folder, "default"), 1.0).unwrap();
        let what = format!("{} on {kind:?}", method.name);
        if !method.merges(kind) {
            let read = merged.get_unchecked("layer.weight", DType::F32, &Device::Cpu);
            let error = read.unwrap_err().to_string();
            assert!(error.contains("groups"), "{what}: {error}");
            continue;
        }
        model.merge_adapters(&MergeOptions::active()).unwrap();
        for (name, expected) in model.merged_state_dict() {
            assert_close(&read(&merged, &name), &expected, TOLERANCE, format_args!("{what}: {name}"));
        }
        merged.finish().unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
    }
}

#[derive(Clone, Injectable)]
struct Classifier {
    encoder: Adapted<Linear>,
    classifier: Adapted<Linear>,
}

fn classifier() -> Classifier {
    let layer = |out, inner| Linear::new(random_with(&[out, inner], 0.5), Some(random_with(&[out], 0.5)));
    Classifier { encoder: layer(6, 5).into(), classifier: layer(2, 6).into() }
}

/// A base model without a head, as base models are before fine-tuning.
fn headless(model: &Classifier) -> Memory {
    let mut tensors = model.base_state_dict();
    tensors.retain(|name, _| !name.starts_with("classifier"));
    Memory::new(tensors)
}

fn with_head() -> LoraConfig {
    LoraConfig::new(2, 4.0).with_targets(["encoder"]).with_modules_to_save(["classifier"])
}

#[test]
fn a_head_that_only_the_adapter_has_comes_from_the_adapter() {
    let mut model = classifier();
    let folder = saved(&mut model, &with_head(), "default");
    let merged = MergedWeights::new(headless(&model)).add(stored(&folder, "default"), 1.0).unwrap();
    let vb = merged.var_builder(DType::F32, &Device::Cpu);
    assert!(vb.contains_tensor("classifier.weight") && !vb.contains_tensor("classifier.other"));
    model.merge_and_unload(&MergeOptions::active()).unwrap();
    let expected = model.base_state_dict();
    let names: BTreeSet<&String> = expected.keys().collect();
    assert_eq!(names.len(), 4);
    for name in names {
        assert_close(&read(&merged, name), &expected[name], TOLERANCE, name);
    }
    merged.finish().unwrap();
    // Whatever shape the model wants.
    assert!(vb.get((3, 6), "classifier.weight").is_err());
}

fn refusal(error: Error, words: &[&str]) {
    let text = error.chain();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn what_cannot_be_merged_without_a_model_is_refused_by_name() {
    let mut model = classifier();
    let folder = saved(&mut model, &with_head(), "default");
    let open = |weight| MergedWeights::new(headless(&classifier())).add(stored(&folder, "default"), weight);
    refusal(open(f64::NAN).unwrap_err(), &["weight NaN"]);
    let twice = open(1.0).unwrap().add(stored(&folder, "default"), 1.0).unwrap_err();
    assert!(matches!(twice, Error::CopiesCollide { .. }), "{twice}");

    let ia3 = Ia3Config::new().with_targets(["encoder"]).with_feedforward(Vec::<String>::new());
    let folder = saved(&mut classifier(), &ia3, "default");
    let weighted = MergedWeights::new(headless(&classifier())).add(stored(&folder, "default"), 0.5);
    refusal(weighted.unwrap_err(), &["IA3", "0.5"]);

    let names = NameMap::new().module("encoder", "classifier");
    let folder = saved(&mut classifier(), &LoraConfig::new(2, 4.0).with_targets(["encoder"]), "default");
    let merged = MergedWeights::new(Memory::new(classifier().base_state_dict()));
    let merged = merged.add_renamed(stored(&folder, "default"), 1.0, &names).unwrap();
    let error = merged.get_unchecked("classifier.weight", DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("[6, 5]") && error.contains("[2, 6]"), "{error}");
}

#[test]
fn files_written_from_merged_weights_are_like_those_of_the_base_model() {
    let base = sharded(&llama_tensors());
    std::fs::write(base.path().join("config.json"), llama_config().to_string()).unwrap();
    let mut own = own_llama(&base);
    let folder = saved(&mut own, &everywhere(), "default");
    own.merge_and_unload(&MergeOptions::active()).unwrap();
    let merged = MergedWeights::new(open(&base)).add(stored(&folder, "default"), 1.0).unwrap();
    let parent = tempfile::tempdir().unwrap();
    let output = parent.path().join("merged");
    let mut last = 0;
    let report = merged.write(&output, &mut |at| last = at.done).unwrap();
    assert_eq!((report.files.len(), last, report.unadapted.len()), (2, report.bytes, 0));
    merged.verify(&output, &mut |_| {}).unwrap();
    let written = LlamaModel::from_folder(&output, DType::F32, &Device::Cpu).unwrap();
    assert_close(&own_llama_output(&written), &own_llama_output(&own), TOLERANCE, "the logits");
    assert_eq!(files(base.path()), files(&output));
    // Nothing else is left, and nothing is overwritten.
    assert_eq!(files(parent.path()), ["merged"]);
    refusal(merged.write(&output, &mut |_| {}).unwrap_err(), &["merged", "there are files in it"]);
    // A changed byte is found.
    let path = &report.files[0];
    let mut bytes = std::fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path, bytes).unwrap();
    assert!(matches!(merged.verify(&output, &mut |_| {}).unwrap_err(), Error::Verification { .. }));
}

fn files(folder: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: BTreeSet<String> = names.collect();
    names.into_iter().collect()
}
