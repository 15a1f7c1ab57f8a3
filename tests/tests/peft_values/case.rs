//! A case of the fixture, and its replay.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Embedding, Linear};
use peft_runtime::prelude::*;
use peft_runtime::{ModelWeights, PeftConfig};
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::bits;
use serde_json::Value;

/// One case of the fixture.
pub struct Case {
    name: &'static str,
    pub tensors: BTreeMap<String, Tensor>,
    /// The text of the adapter's config.
    config: String,
}

impl Case {
    pub fn read(name: &'static str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/peft_values.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let texts: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["json"]).unwrap();
        let file = ModelWeights::open(&path).unwrap();
        let own = |key: &str| Some((key.strip_prefix(name)?.strip_prefix('/')?.to_owned(), key.to_owned()));
        let keys: Vec<(String, String)> = file.names().filter_map(own).collect();
        let read = |(key, full): (String, String)| (key, file.tensor(&full, &Device::Cpu).unwrap());
        let tensors = keys.into_iter().map(read).collect();
        Self { name, tensors, config: texts[name].as_str().unwrap().to_owned() }
    }

    pub fn tensor(&self, key: &str) -> Tensor {
        self.tensors[key].clone()
    }

    pub fn base(&self, key: &str) -> Tensor {
        self.tensor(&format!("base/{key}"))
    }

    pub fn linear(&self, path: &str) -> Adapted<Linear> {
        Linear::new(self.base(&format!("{path}.weight")), Some(self.base(&format!("{path}.bias")))).into()
    }

    pub fn embedding(&self, path: &str) -> Adapted<Embedding> {
        let table = self.base(&format!("{path}.weight"));
        let features = table.dims()[1];
        Embedding::new(table, features).into()
    }

    /// PEFT's tokens are of 64 bits.
    pub fn input(&self) -> Tensor {
        let x = self.tensor("x");
        if x.dtype() == DType::I64 { x.to_dtype(DType::U32).unwrap() } else { x }
    }

    /// The tensors whose keys begin with `prefix`, without it.
    pub fn part(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let own =
            |(key, tensor): (&String, &Tensor)| Some((key.strip_prefix(prefix)?.to_owned(), tensor.clone()));
        self.tensors.iter().filter_map(own).collect()
    }

    pub fn adapter(&self) -> BTreeMap<String, Tensor> {
        self.part("adapter/")
    }

    /// The adapter's folder, as PEFT wrote it.
    pub fn folder(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("adapter_config.json"), &self.config).unwrap();
        let weights = safetensors::serialize(self.adapter().iter(), None).unwrap();
        std::fs::write(folder.path().join("adapter_model.safetensors"), weights).unwrap();
        folder
    }

    pub fn expect(&self, key: &str, found: &Tensor) {
        assert_close(
            found,
            &self.tensor(&format!("expected/{key}")),
            Tolerance::absolute(2e-5),
            format_args!("{}: {key}", self.name),
        );
    }

    /// Injects, loads, merges and saves on `model`, and compares at each step with what PEFT has.
    pub fn replay<M: Injectable + Clone>(&self, base: &M, forward: impl Fn(&M, &Tensor) -> Result<Tensor>) {
        let x = self.input();
        let output = |model: &M| forward(model, &x).unwrap();
        self.expect("base", &output(base));
        let mut fresh = base.clone();
        let config = PeftConfig::from_json(&self.config).unwrap();
        fresh.inject_adapter(config.method(), "default").unwrap();
        self.expect("fresh", &output(&fresh));
        assert!(fresh.adapter_state_dict("default").unwrap().keys().eq(self.adapter().keys()));
        let mut model = base.clone();
        model.load_adapter(self.folder().path(), "default").unwrap();
        self.expect("output", &output(&model));
        model.disable_adapters();
        self.expect("disabled", &output(&model));
        model.enable_adapters();
        if self.tensors.contains_key("expected/merged") {
            model.merge_adapters(&MergeOptions::active()).unwrap();
            self.expect("merged", &output(&model));
            model.unmerge_adapters().unwrap();
        }
        self.same_files(&model);
    }

    /// The config of the file, of LoRA.
    pub fn method(&self) -> LoraConfig {
        LoraConfig::from_json(&self.config).unwrap()
    }

    /// What is saved is what PEFT wrote, bit for bit and field for field.
    pub fn same_files<M: Injectable>(&self, model: &M) {
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path(), "default").unwrap();
        let saved = ModelWeights::open(folder.path().join("adapter_model.safetensors")).unwrap();
        let adapter = self.adapter();
        assert!(saved.names().eq(adapter.keys().map(String::as_str)), "{}: keys", self.name);
        for (key, tensor) in &adapter {
            let ours = saved.tensor(key, &Device::Cpu).unwrap();
            assert_eq!(bits(&ours).unwrap(), bits(tensor).unwrap(), "{}: {key}", self.name);
        }
        let text = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
        let [mut ours, mut theirs] =
            [&text, &self.config].map(|text| serde_json::from_str::<Value>(text).unwrap());
        for config in [&mut ours, &mut theirs] {
            // A config with only parameters has an empty list of modules here, and none in PEFT.
            let targets = config["target_modules"].as_array().cloned().unwrap_or_default();
            config["target_modules"] = Value::Array(targets);
        }
        assert_eq!(ours, theirs, "{}", self.name);
    }
}
