//! The cases of the fixture, as folders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use peft_runtime::models::gpt2::Gpt2Model;
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use peft_runtime::{MergedWeights, ModelWeights, StoredAdapter};
use serde_json::Value;
use tempfile::TempDir;

pub struct Case {
    pub name: &'static str,
    pub base: TempDir,
    pub adapter: TempDir,
}

/// Either model, by the `model_type` of its folder.
pub enum Language {
    Llama(Box<LlamaModel>),
    Gpt2(Box<Gpt2Model>),
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/merged_models.safetensors")
}

fn texts() -> Value {
    let bytes = std::fs::read(path()).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["json"]).unwrap()
}

/// The tensors whose names begin with `prefix`, without it.
pub fn tensors(prefix: &str) -> BTreeMap<String, Tensor> {
    let file = ModelWeights::open(path()).unwrap();
    let own =
        |key: &str| Some((key.strip_prefix(prefix)?.to_owned(), file.tensor(key, &Device::Cpu).unwrap()));
    file.names().filter_map(own).collect()
}

pub fn write(folder: &Path, file: &str, tensors: &BTreeMap<String, Tensor>) {
    std::fs::write(folder.join(file), safetensors::serialize(tensors, None).unwrap()).unwrap();
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

impl Case {
    pub fn read(name: &'static str) -> Self {
        let (texts, base) = (texts(), tempfile::tempdir().unwrap());
        if let Some(model) = texts[name]["base"].as_str() {
            write(base.path(), "model.safetensors", &tensors(&format!("base/{model}/")));
            let config = texts[format!("base/{model}")].to_string();
            std::fs::write(base.path().join("config.json"), config).unwrap();
        } else {
            write(base.path(), "model.safetensors", &tensors(&format!("{name}/base/")));
        }
        let adapter = adapter_of(name, &texts);
        Self { name, base, adapter }
    }

    pub fn ids(&self) -> Tensor {
        self.tensor("ids").to_dtype(DType::U32).unwrap()
    }

    pub fn logits(&self) -> Tensor {
        self.tensor("logits")
    }

    pub fn tensor(&self, key: &str) -> Tensor {
        tensors(&format!("{}/", self.name))[key].clone()
    }

    pub fn stored(&self) -> StoredAdapter {
        StoredAdapter::open(self.adapter.path()).unwrap()
    }

    pub fn merged(&self) -> peft_runtime::Result<MergedWeights> {
        MergedWeights::new(ModelWeights::open(self.base.path()).unwrap()).add(self.stored(), 1.0)
    }

    /// The folder of the merged model.
    pub fn written(&self) -> TempDir {
        let (folder, merged) = (tempfile::tempdir().unwrap(), self.merged().unwrap());
        merged.write(folder.path(), &mut |_| {}).unwrap();
        merged.verify(folder.path(), &mut |_| {}).unwrap();
        folder
    }

    /// Changes the base model's config.
    pub fn configure(&self, change: impl FnOnce(&mut Value)) {
        let path = self.base.path().join("config.json");
        let mut config = read_json(&path);
        change(&mut config);
        std::fs::write(path, config.to_string()).unwrap();
    }
}

/// The adapter's folder.
fn adapter_of(name: &str, texts: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "adapter_model.safetensors", &tensors(&format!("{name}/adapter/")));
    std::fs::write(folder.path().join("adapter_config.json"), texts[name]["adapter"].to_string()).unwrap();
    folder
}

/// The adapter of a case without a folder of a base model.
pub fn adapter(name: &str) -> TempDir {
    adapter_of(name, &texts())
}

impl Language {
    pub fn open(folder: &Path) -> Self {
        let config = read_json(&folder.join("config.json"));
        match config["model_type"].as_str().unwrap() {
            "gpt2" => Self::Gpt2(Box::new(Gpt2Model::from_folder(folder, DType::F32, &Device::Cpu).unwrap())),
            _ => Self::Llama(Box::new(LlamaModel::from_folder(folder, DType::F32, &Device::Cpu).unwrap())),
        }
    }

    pub fn logits(&self, ids: &Tensor) -> Tensor {
        match self {
            Self::Llama(model) => model.forward(ids, None).unwrap(),
            Self::Gpt2(model) => model.forward(ids, None).unwrap(),
        }
    }

    pub fn load_adapter(&mut self, folder: &Path) {
        match self {
            Self::Llama(model) => model.load_adapter(folder, "default").map(|_| ()).unwrap(),
            Self::Gpt2(model) => model.load_adapter(folder, "default").map(|_| ()).unwrap(),
        }
    }

    pub fn merged_state_dict(&mut self) -> BTreeMap<String, Tensor> {
        let options = MergeOptions::active();
        match self {
            Self::Llama(model) => {
                model.merge_adapters(&options).unwrap();
                model.merged_state_dict()
            }
            Self::Gpt2(model) => {
                model.merge_adapters(&options).unwrap();
                model.merged_state_dict()
            }
        }
    }
}
