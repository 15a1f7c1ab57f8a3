//! Small random base models, and adapters for them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use peft_runtime::{MergedWeights, ModelWeights, StoredAdapter};
use peft_tests::tensors::{random_with, randomise};
use serde_json::{Value, json};
use tempfile::TempDir;

pub const VOCABULARY: usize = 23;

/// Weights of a linear layer that keep the scale of its input.
pub fn linear(tensors: &mut BTreeMap<String, Tensor>, name: &str, out: usize, inner: usize, bias: bool) {
    let deviation = 1.0 / (inner as f64).sqrt();
    tensors.insert(format!("{name}.weight"), random_with(&[out, inner], deviation));
    if bias {
        tensors.insert(format!("{name}.bias"), random_with(&[out], 0.1));
    }
}

pub fn norm(tensors: &mut BTreeMap<String, Tensor>, name: &str, size: usize, bias: bool) {
    tensors.insert(format!("{name}.weight"), (random_with(&[size], 0.1) + 1.0).unwrap());
    if bias {
        tensors.insert(format!("{name}.bias"), random_with(&[size], 0.1));
    }
}

/// A folder with the tensors in two shards.
pub fn sharded(tensors: &BTreeMap<String, Tensor>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<&String> = tensors.keys().collect();
    let mut weight_map = BTreeMap::new();
    for (number, names) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", number + 1);
        let shard: Vec<(&String, &Tensor)> = names.iter().map(|name| (*name, &tensors[*name])).collect();
        std::fs::write(folder.path().join(&file), safetensors::serialize(shard, None).unwrap()).unwrap();
        weight_map.extend(names.iter().map(|name| ((*name).clone(), file.clone())));
    }
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": weight_map });
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    folder
}

pub fn open(folder: &TempDir) -> ModelWeights {
    ModelWeights::open(folder.path()).unwrap()
}

pub fn builder(folder: &TempDir) -> VarBuilder<'static> {
    open(folder).var_builder(DType::F32, &Device::Cpu)
}

/// Saves an adapter with random tensors, which stays on the model.
pub fn saved<M: Injectable>(model: &mut M, config: &dyn AdapterMethod, name: &str) -> TempDir {
    model.inject_adapter(config, name).unwrap();
    randomise(model, name, 0.1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), name).unwrap();
    folder
}

pub fn stored(folder: &TempDir, name: &str) -> StoredAdapter {
    let own = folder.path().join(name);
    StoredAdapter::open(if own.is_dir() { own.as_path() } else { folder.path() }).unwrap()
}

pub fn ids() -> Tensor {
    Tensor::new(&[[3u32, 7, 1, 22, 5], [9, 9, 2, 14, 1]], &Device::Cpu).unwrap()
}

pub fn llama_config() -> Value {
    json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 32, "tie_word_embeddings": false
    })
}

pub fn llama_tensors() -> BTreeMap<String, Tensor> {
    let (size, wide) = (16, 24);
    let mut tensors = BTreeMap::new();
    tensors.insert("model.embed_tokens.weight".to_owned(), random_with(&[VOCABULARY, size], 1.0));
    norm(&mut tensors, "model.norm", size, false);
    linear(&mut tensors, "lm_head", VOCABULARY, size, false);
    for layer in 0..2 {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        for (name, out) in [("q", size), ("k", size / 2), ("v", size / 2), ("o", size)] {
            linear(&mut tensors, &at(&format!("self_attn.{name}_proj")), out, size, false);
        }
        linear(&mut tensors, &at("mlp.gate_proj"), wide, size, false);
        linear(&mut tensors, &at("mlp.up_proj"), wide, size, false);
        linear(&mut tensors, &at("mlp.down_proj"), size, wide, false);
        norm(&mut tensors, &at("input_layernorm"), size, false);
        norm(&mut tensors, &at("post_attention_layernorm"), size, false);
    }
    tensors
}

pub fn own_llama(base: &TempDir) -> LlamaModel {
    LlamaModel::new(&serde_json::from_value(llama_config()).unwrap(), builder(base)).unwrap()
}

/// The logits after the last token.
pub fn own_llama_output(model: &LlamaModel) -> Tensor {
    let logits = model.forward(&ids(), None).unwrap();
    let last = logits.dim(1).unwrap() - 1;
    logits.narrow(1, last, 1).unwrap().squeeze(1).unwrap()
}

pub fn everywhere() -> LoraConfig {
    LoraConfig::new(4, 6.0).with_targets([
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "embed_tokens",
        "lm_head",
    ])
}

/// Tensors in memory, with a list of those that were read.
pub struct Memory {
    tensors: BTreeMap<String, Tensor>,
    pub read: Arc<Mutex<Vec<String>>>,
}

impl Memory {
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors, read: Arc::default() }
    }
}

impl SimpleBackend for Memory {
    fn get(&self, _: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        self.get_unchecked(name, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.read.lock().unwrap().push(name.to_owned());
        match self.tensors.get(name) {
            Some(tensor) => tensor.to_dtype(dtype)?.to_device(device),
            None => candle_core::bail!("no tensor `{name}`"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

pub fn read<B: SimpleBackend + 'static>(merged: &MergedWeights<B>, name: &str) -> Tensor {
    merged.get_unchecked(name, DType::F32, &Device::Cpu).unwrap()
}
