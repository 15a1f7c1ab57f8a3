//! Unmodified models of candle-transformers.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{bert, llama};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::models::bert::BertModel;
use peft_runtime::prelude::*;
use peft_runtime::{Error, MergedWeights, NameMap, StoredAdapter};
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::methods::{METHODS, Target};
use peft_tests::tensors::{distance, random_with};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bases::{
    VOCABULARY, builder, everywhere, ids, linear, llama_config, llama_tensors, norm, open, own_llama,
    own_llama_output, saved, sharded, stored,
};

const TOLERANCE: Tolerance = Tolerance::absolute(1e-5);

fn bert_config() -> Value {
    json!({
        "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 24, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "max_position_embeddings": 12,
        "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0,
        "model_type": "bert"
    })
}

fn bert_base() -> TempDir {
    let (size, wide) = (16, 24);
    let mut tensors = BTreeMap::new();
    for (name, rows) in [("word", VOCABULARY), ("position", 12), ("token_type", 2)] {
        tensors.insert(format!("embeddings.{name}_embeddings.weight"), random_with(&[rows, size], 1.0));
    }
    norm(&mut tensors, "embeddings.LayerNorm", size, true);
    for layer in 0..2 {
        let at = |name: &str| format!("encoder.layer.{layer}.{name}");
        for name in ["query", "key", "value"] {
            linear(&mut tensors, &at(&format!("attention.self.{name}")), size, size, true);
        }
        linear(&mut tensors, &at("attention.output.dense"), size, size, true);
        norm(&mut tensors, &at("attention.output.LayerNorm"), size, true);
        linear(&mut tensors, &at("intermediate.dense"), wide, size, true);
        linear(&mut tensors, &at("output.dense"), size, wide, true);
        norm(&mut tensors, &at("output.LayerNorm"), size, true);
    }
    sharded(&tensors)
}

fn own_bert(base: &TempDir) -> BertModel {
    BertModel::new(&serde_json::from_value(bert_config()).unwrap(), builder(base)).unwrap()
}

fn their_bert(vb: VarBuilder<'_>) -> bert::BertModel {
    bert::BertModel::load(vb, &serde_json::from_value(bert_config()).unwrap()).unwrap()
}

fn their_bert_output(vb: VarBuilder<'_>) -> Tensor {
    their_bert(vb).forward(&ids(), &ids().zeros_like().unwrap(), None).unwrap()
}

fn own_bert_output(model: &BertModel) -> Tensor {
    model.forward(&ids(), None, None).unwrap()
}

/// Every method that can be saved, and every config option that adds to it.
fn bert_adapters() -> Vec<(&'static str, Box<dyn AdapterMethod>)> {
    let target = Target { layers: &["query", "value", "output.dense"], seed: 0 };
    let saved = METHODS.iter().filter(|method| method.saves);
    let mut all: Vec<_> = saved.map(|method| (method.name, method.config_for(target))).collect();
    let mut add = |what, config: LoraConfig| all.push((what, Box::new(config)));
    let lora = || LoraConfig::new(4, 6.0).with_targets(target.layers);
    let ranks = [("^encoder.layer.0.attention.self.query", 2)];
    let patterns = lora().with_rslora(true).with_rank_pattern(ranks).with_alpha_pattern([("value", 3.0)]);
    add("rslora with patterns", patterns);
    add("lora with its layers' biases", lora().with_bias(Bias::LoraOnly));
    add("lora on an embedding", LoraConfig::new(4, 6.0).with_targets(["word_embeddings", "query"]));
    let copies = lora().with_modules_to_save(["embeddings.LayerNorm", "layer.1.intermediate.dense"]);
    add("lora with full copies", copies);
    add("lora with tokens", lora().with_trainable_tokens([1u32, 5]));
    all
}

#[test]
fn bert_of_candle_transformers_computes_what_our_merged_bert_computes() {
    let base = bert_base();
    let plain = their_bert_output(builder(&base));
    assert_close(&plain, &own_bert_output(&own_bert(&base)), TOLERANCE, "the output without an adapter");
    for (what, config) in bert_adapters() {
        let mut own = own_bert(&base);
        let folder = saved(&mut own, config.as_ref(), "default");
        own.merge_and_unload(&MergeOptions::active()).unwrap();
        let expected = own_bert_output(&own);
        let merged = MergedWeights::new(open(&base)).add(stored(&folder, "default"), 1.0).unwrap();
        let found = their_bert_output(merged.var_builder(DType::F32, &Device::Cpu));
        merged.finish().unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
        assert_close(&found, &expected, TOLERANCE, what);
        assert!(distance(&found, &plain).unwrap() > 1e-3, "{what} did nothing");
    }
}

fn their_llama_output(vb: VarBuilder<'_>, layers: usize) -> Tensor {
    let mut config = llama_config();
    config["num_hidden_layers"] = json!(layers);
    let config: llama::LlamaConfig = serde_json::from_value(config).unwrap();
    let config = config.into_config(false);
    let model = llama::Llama::load(vb, &config).unwrap();
    let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
    model.forward(&ids(), 0, &mut cache).unwrap()
}

#[test]
fn llama_of_candle_transformers_computes_what_our_merged_llama_computes() {
    let base = sharded(&llama_tensors());
    let mut own = own_llama(&base);
    let first = saved(&mut own, &everywhere(), "first");
    let second = saved(
        &mut own,
        &LoraConfig::new(2, 5.0).with_dora(true).with_targets(["q_proj", "down_proj"]),
        "second",
    );
    own.scale_adapter("second", 0.5).unwrap();
    own.merge_and_unload(&MergeOptions::adapters(["first", "second"])).unwrap();
    let merged = MergedWeights::new(open(&base))
        .add(stored(&first, "first"), 1.0)
        .and_then(|merged| merged.add(stored(&second, "second"), 0.5))
        .unwrap();
    let found = their_llama_output(merged.var_builder(DType::F32, &Device::Cpu), 2);
    merged.finish().unwrap();
    assert_close(&found, &own_llama_output(&own), TOLERANCE, "the logits");
    assert!(distance(&found, &their_llama_output(builder(&base), 2)).unwrap() > 1e-3);
}

#[test]
fn tensors_that_no_layer_takes_are_an_error_of_finish() {
    let base = sharded(&llama_tensors());
    let folder = saved(&mut own_llama(&base), &everywhere(), "default");
    let merged = MergedWeights::new(open(&base)).add(stored(&folder, "default"), 1.0).unwrap();
    // A model with one block takes nothing from the second.
    their_llama_output(merged.var_builder(DType::F32, &Device::Cpu), 1);
    let error = merged.finish().unwrap_err().chain();
    assert!(error.contains("unexpected") && error.contains("model.layers.1."), "{error}");
    assert!(error.contains("adapter_model.safetensors"), "{error}");
}

#[test]
fn layers_that_the_file_leaves_out_are_an_error_of_finish() {
    let base = sharded(&llama_tensors());
    let folder = saved(&mut own_llama(&base), &LoraConfig::new(4, 6.0).with_targets(["q_proj"]), "default");
    let adapter = stored(&folder, "default");
    let mut tensors = adapter.tensors(&Device::Cpu).unwrap();
    tensors.retain(|key, _| !key.contains("layers.1."));
    let shortened = StoredAdapter::new("short", adapter.config().clone(), tensors).unwrap();
    let merged = MergedWeights::new(open(&base)).add(shortened, 1.0).unwrap();
    their_llama_output(merged.var_builder(DType::F32, &Device::Cpu), 2);
    let error = merged.finish().unwrap_err().chain();
    assert!(error.contains("missing: `model.layers.1.self_attn.q_proj`"), "{error}");
}

#[test]
fn tensors_for_modules_that_the_checkpoint_lacks_are_an_error_at_once() {
    let base = sharded(&llama_tensors());
    let folder = saved(&mut own_llama(&base), &everywhere(), "default");
    let names = NameMap::new().prefix("model", "transformer");
    let error =
        MergedWeights::new(open(&base)).add_renamed(stored(&folder, "default"), 1.0, &names).unwrap_err();
    let Error::InFile { source, .. } = error else { panic!("{error}") };
    assert!(matches!(*source, Error::Tensors { .. }), "{source}");
}
