//! A small model with the module names of Llama, its files, adapters for it, and the command.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use candle_nn::{Embedding, Linear};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The size of the hidden states: two heads of four, and one head of keys and values.
pub const SIZE: usize = 8;
pub const HEADS: usize = 2;
const ROWS: usize = 11;

#[derive(Clone, Injectable)]
pub struct Model {
    model: Decoder,
    lm_head: Adapted<Linear>,
}

#[derive(Clone, Injectable)]
struct Decoder {
    embed_tokens: Adapted<Embedding>,
    layers: Vec<Block>,
}

#[derive(Clone, Injectable)]
struct Block {
    self_attn: Attention,
}

#[derive(Clone, Injectable)]
struct Attention {
    q_proj: Adapted<Linear>,
    k_proj: Adapted<Linear>,
    o_proj: Adapted<Linear>,
}

thread_local! {
    /// Each test runs on a thread of its own.
    static GENERATOR: RefCell<ChaCha8Rng> = RefCell::new(ChaCha8Rng::seed_from_u64(0));
}

/// Values with mean 0 and standard deviation 1, the same in every run.
pub fn random(shape: &[usize]) -> Tensor {
    let bound = 3f32.sqrt();
    let values: Vec<f32> = GENERATOR.with_borrow_mut(|generator| {
        let mut draw = || (generator.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
        (0..shape.iter().product()).map(|_| draw() * bound).collect()
    });
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

impl Model {
    pub fn random(dtype: DType) -> Self {
        let weight = |out: usize| random(&[out, SIZE]).to_dtype(dtype).unwrap();
        let linear = |out: usize| Adapted::new(Linear::new(weight(out), None));
        let block = |_| Block {
            self_attn: Attention { q_proj: linear(SIZE), k_proj: linear(SIZE / HEADS), o_proj: linear(SIZE) },
        };
        let embed_tokens = Embedding::new(weight(ROWS), SIZE).into();
        Self { model: Decoder { embed_tokens, layers: (0..2).map(block).collect() }, lm_head: linear(ROWS) }
    }

    /// A folder with the base model's weights in two shards, and its config.
    pub fn save(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut tensors: Vec<(String, Tensor)> = self.base_state_dict().into_iter().collect();
        // A tensor that no adapter changes.
        tensors.push(("positions".to_owned(), Tensor::new(&[3i64, 1, 2], &Device::Cpu).unwrap()));
        let mut weight_map = BTreeMap::new();
        for (number, tensors) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
            let file = format!("model-{:05}-of-00002.safetensors", number + 1);
            let metadata = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
            let shard = tensors.iter().map(|(name, tensor)| (name, tensor));
            let bytes = safetensors::serialize(shard, Some(metadata)).unwrap();
            std::fs::write(folder.path().join(&file), bytes).unwrap();
            weight_map.extend(tensors.iter().map(|(name, _)| (name.clone(), file.clone())));
        }
        let index = json!({ "metadata": { "total_size": 0, "kept": 1 }, "weight_map": weight_map });
        std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let config = json!({ "model_type": "llama", "num_attention_heads": HEADS, "num_key_value_heads": 1 });
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        folder
    }

    /// Saves an adapter with random tensors, which stays on the model.
    pub fn adapter(&mut self, config: &dyn AdapterMethod, name: &str) -> TempDir {
        self.inject_adapter(config, name).unwrap();
        let mut state = self.adapter_state_dict(name).unwrap();
        for tensor in state.values_mut() {
            let noise = (random(tensor.dims()) * 0.3).unwrap();
            *tensor = (tensor.to_dtype(DType::F32).unwrap() + noise).unwrap();
        }
        self.load_adapter_state_dict(&state, name).unwrap();
        let folder = tempfile::tempdir().unwrap();
        self.save_pretrained(folder.path(), name).unwrap();
        // An adapter that is not named `default` is saved in a folder of its own; tests want the files in this one.
        let own = folder.path().join(name);
        if own.is_dir() {
            for file in ["adapter_config.json", "adapter_model.safetensors"] {
                std::fs::rename(own.join(file), folder.path().join(file)).unwrap();
            }
        }
        folder
    }

    /// The weights with the adapters merged.
    pub fn merged(&self, names: &[&str]) -> BTreeMap<String, Tensor> {
        let mut model = self.clone();
        model.merge_adapters(&MergeOptions::adapters(names.iter().copied())).unwrap();
        model.merged_state_dict()
    }
}

pub fn lora() -> LoraConfig {
    LoraConfig::new(2, 6.0).with_targets(["q_proj", "o_proj"])
}

/// Runs the command with these arguments.
pub fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peft")).args(arguments).output().unwrap()
}

/// What the command prints when it succeeds.
pub fn output_of(arguments: &[&str]) -> String {
    let output = run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The JSON that the command prints.
pub fn json_of(arguments: &[&str]) -> Value {
    serde_json::from_str(&output_of(&[arguments, &["--json"]].concat())).unwrap()
}

/// What the command says on standard error when it fails with this status.
pub fn error_of(arguments: &[&str], status: i32) -> String {
    let output = run(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {errors}");
    assert!(output.stdout.is_empty(), "{arguments:?} printed");
    errors
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
    (wide(a) - wide(b)).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

pub fn assert_same(found: &BTreeMap<String, Tensor>, expected: &BTreeMap<String, Tensor>, tolerance: f64) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, tensor) in expected {
        let error = distance(&found[name], tensor);
        assert!(error <= tolerance, "`{name}` is off by {error}");
    }
}
