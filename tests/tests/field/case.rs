//! The cases of `fixtures/field.json`, which `python/field_cases.py` wrote.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use peft_runtime::{LoadReport, MergedWeights, ModelWeights, PeftConfig, StoredAdapter};
use peft_tests::close::{Tolerance, assert_close};
use serde_json::Value;
use tempfile::TempDir;

pub type State = BTreeMap<String, Tensor>;

/// What the values that PEFT computed are compared within.
pub const TOLERANCE: Tolerance = Tolerance::absolute(1e-4);

/// An adapter and what PEFT computes with it.
pub struct Case {
    pub name: &'static str,
    pub config: Value,
    pub state: State,
    fields: &'static Value,
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn tensors() -> &'static State {
    static TENSORS: OnceLock<State> = OnceLock::new();
    TENSORS.get_or_init(|| {
        let file = ModelWeights::open(path("field.safetensors")).unwrap();
        file.names().map(|name| (name.to_owned(), file.tensor(name, &Device::Cpu).unwrap())).collect()
    })
}

fn fields(case: &str) -> &'static Value {
    static CASES: OnceLock<Value> = OnceLock::new();
    let text = || std::fs::read_to_string(path("field.json")).unwrap();
    &CASES.get_or_init(|| serde_json::from_str(&text()).unwrap())[case]
}

/// A text that a case has instead of tensors.
pub fn text(case: &str) -> &'static str {
    fields(case)["text"].as_str().unwrap()
}

fn named(keys: &Value) -> State {
    let keys = keys.as_object().unwrap();
    keys.iter().map(|(key, name)| (key.clone(), tensors()[name.as_str().unwrap()].clone())).collect()
}

impl Case {
    pub fn open(name: &'static str) -> Self {
        let fields = fields(name);
        Self { name, config: fields["config"].clone(), state: named(&fields["keys"]), fields }
    }

    /// The same under other keys.
    pub fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        self.state = self.state.into_iter().map(|(key, tensor)| (rename(&key), tensor)).collect();
        self
    }

    /// The same with another value of a field of its config.
    pub fn with_field(mut self, field: &str, value: Value) -> Self {
        self.config.as_object_mut().unwrap().insert(field.to_owned(), value);
        self
    }

    /// A tensor that the case has besides its adapter.
    pub fn tensor(&self, name: &str) -> Tensor {
        tensors()[self.fields[name].as_str().unwrap()].clone()
    }

    /// Tensors that the case has besides its adapter.
    pub fn tensors(&self, name: &str) -> State {
        named(&self.fields[name])
    }

    pub fn ids(&self) -> Tensor {
        let ids: Vec<Vec<u32>> = serde_json::from_value(self.fields["ids"].clone()).unwrap();
        Tensor::new(ids, &Device::Cpu).unwrap()
    }

    pub fn config(&self) -> PeftConfig {
        PeftConfig::from_json(&self.config.to_string()).unwrap()
    }

    /// Writes the adapter's files.
    pub fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("adapter_config.json"), self.config.to_string()).unwrap();
        let bytes = safetensors::serialize(self.state.iter(), None).unwrap();
        std::fs::write(folder.join("adapter_model.safetensors"), bytes).unwrap();
    }

    /// A folder with the adapter's files.
    pub fn folder(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        self.write(folder.path());
        folder
    }

    /// The tensors of the base model, with as many tokens as the adapter was trained with.
    pub fn base(&self) -> State {
        let mut base = Self::open("base").state;
        for name in ["lm_head.weight", "model.embed_tokens.weight"] {
            let own = &base[name];
            let rows = if self.has_52_rows() { 52 - own.dim(0).unwrap() } else { 0 };
            let padded = own.pad_with_zeros(0, 0, rows).unwrap();
            base.insert(name.to_owned(), padded);
        }
        base
    }

    /// Whether the head of the base model has the weight of its embedding.
    fn is_tied(&self) -> bool {
        self.fields["tied"].as_bool().unwrap_or_default()
    }

    fn has_52_rows(&self) -> bool {
        self.state.values().any(|tensor| tensor.dims().first() == Some(&52))
    }

    pub fn model(&self) -> LlamaModel {
        self.model_of(VarBuilder::from_tensors(self.base().into_iter().collect(), DType::F32, &Device::Cpu))
    }

    fn model_of(&self, vb: VarBuilder<'_>) -> LlamaModel {
        let mut config = Self::open("base").config;
        if self.has_52_rows() {
            config["vocab_size"] = 52.into();
        }
        config["tie_word_embeddings"] = self.is_tied().into();
        LlamaModel::new(&serde_json::from_value(config).unwrap(), vb).unwrap()
    }

    /// The model with the adapter loaded from a folder.
    pub fn loaded(&self, folder: &Path, adapter: &str) -> (LlamaModel, LoadReport) {
        let mut model = self.model();
        let report = model.load_adapter(folder, adapter);
        (model, report.unwrap_or_else(|error| panic!("{}: {}", self.name, error.chain())))
    }

    /// The base weights as a file in a folder.
    pub fn base_folder(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let bytes = safetensors::serialize(self.base(), None).unwrap();
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        folder
    }

    /// The model with the adapter merged into its weights as they are loaded.
    pub fn merged(&self, adapter: StoredAdapter) -> LlamaModel {
        let base = self.base_folder();
        let merged = MergedWeights::new(ModelWeights::open(base.path()).unwrap()).add(adapter, 1.0);
        let merged = merged.unwrap_or_else(|error| panic!("{}: {}", self.name, error.chain()));
        let model = self.model_of(merged.var_builder(DType::F32, &Device::Cpu));
        merged.finish().unwrap_or_else(|error| panic!("{}: {}", self.name, error.chain()));
        model
    }

    /// Checks that the model computes what PEFT does.
    pub fn check(&self, model: &LlamaModel, how: &str) {
        let logits = model.forward(&self.ids(), None).unwrap();
        assert_close(&logits, &self.tensor("logits"), TOLERANCE, format_args!("{} {how}", self.name));
    }

    /// Checks that every reader of files computes what PEFT does.
    pub fn check_files(&self) {
        let folder = self.folder();
        self.check(&self.loaded(folder.path(), "chat").0, "loaded");
        let stored = StoredAdapter::open(folder.path()).unwrap();
        let layers = stored.layers();
        assert!(!layers.unwrap_or_else(|error| panic!("{}: {}", self.name, error.chain())).is_empty());
        let again = tempfile::tempdir().unwrap();
        stored.save(again.path()).unwrap();
        self.check(&self.loaded(again.path(), "chat").0, "saved again");
        self.check(&self.merged(stored), "merged");
    }
}
