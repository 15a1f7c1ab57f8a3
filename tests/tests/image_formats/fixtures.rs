//! The tiny base models and adapter files that `tests/python/image_formats.py` writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use peft_runtime::{BaseWeights, ModelWeights};
use serde::Deserialize;

/// A base model: its config, and the shapes of its tensors, whose values follow from their names.
#[derive(Deserialize)]
pub struct Base {
    config: serde_json::Value,
    tensors: BTreeMap<String, Vec<usize>>,
}

/// An adapter file, and what it does to the base model's tensors.
#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    pub file: String,
    pub base: String,
    pub format: String,
    /// Of every tensor that changes: its sum, and its sums weighted by two patterns.
    pub changed: BTreeMap<String, [f64; 3]>,
    /// How many keys are for another model.
    #[serde(default)]
    pub left_out: usize,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/image_formats")
}

/// The file of an adapter.
pub fn file(name: &str) -> PathBuf {
    folder().join(name)
}

fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(folder().join(name)).unwrap()).unwrap()
}

pub fn cases() -> Vec<Case> {
    read("cases.json")
}

/// Numbers between -1/2 and 1/2 with 24 bits, which follow from a name: those of the Python program.
pub fn values(name: &str, count: usize) -> Vec<f64> {
    let step = |state: u64, byte: u8| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    let start = name.bytes().fold(0xCBF2_9CE4_8422_2325, step);
    let mix = |number: usize| {
        let mut z = start.wrapping_add((number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24) - 0.5
    };
    (0..count).map(mix).collect()
}

/// The three numbers of a tensor.
pub fn probes(tensor: &Tensor) -> [f64; 3] {
    let own: Vec<f64> = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let weighted =
        |pattern: &str| -> f64 { own.iter().zip(values(pattern, own.len())).map(|(a, b)| a * b).sum() };
    [own.iter().sum(), weighted("first probe"), weighted("second probe")]
}

/// The tensors of a base model.
pub fn tensors(base: &Base) -> BTreeMap<String, Tensor> {
    let tensor = |(name, shape): (&String, &Vec<usize>)| {
        let values = values(name, shape.iter().product());
        let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap();
        (name.clone(), tensor.to_dtype(DType::F32).unwrap())
    };
    base.tensors.iter().map(tensor).collect()
}

/// Base models in folders as diffusers and transformers have them.
pub struct Bases {
    all: BTreeMap<String, Base>,
    folder: tempfile::TempDir,
}

impl Bases {
    pub fn read() -> Self {
        Self { all: read("bases.json"), folder: tempfile::tempdir().unwrap() }
    }

    pub fn tensors(&self, name: &str) -> BTreeMap<String, Tensor> {
        tensors(&self.all[name])
    }

    /// The folder of a base model, which is written on the first call.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        if folder.is_dir() {
            return folder;
        }
        std::fs::create_dir(&folder).unwrap();
        let base = &self.all[name];
        let file = match base.config.get("_class_name") {
            Some(_) => "diffusion_pytorch_model.safetensors",
            None => "model.safetensors",
        };
        let tensors: Vec<(String, Tensor)> = tensors(base).into_iter().collect();
        safetensors::serialize_to_file(tensors, None, &folder.join(file)).unwrap();
        std::fs::write(folder.join("config.json"), base.config.to_string()).unwrap();
        folder
    }

    pub fn weights(&self, name: &str) -> ModelWeights {
        ModelWeights::open(self.folder(name)).unwrap()
    }

    pub fn base(&self, name: &str) -> BaseWeights {
        BaseWeights::new(self.weights(name)).unwrap()
    }
}
