//! The config and the tensors of an adapter while they are repaired.

use std::collections::{BTreeMap, BTreeSet};

use peft_runtime::candle_core::{DType, Device, Tensor};
use peft_runtime::{Error, ModelWeights, NameMap, PeftConfig, StoredAdapter, StoredKind};
use serde_json::{Value, json};

use crate::check::adapter_file::AdapterFile;
use crate::check::feature::Feature;
use crate::check::keys::{Key, PREFIX, Part};
use crate::failure::Failure;

/// An adapter under the keys that PEFT writes.
pub struct Contents {
    name: String,
    config: Value,
    tensors: BTreeMap<String, (Key, Tensor)>,
}

impl Contents {
    /// Reads the adapter.
    ///
    /// # Errors
    /// If its tensors cannot be read, or two of them have the same key without wrappers and names.
    pub fn read(adapter: &AdapterFile) -> Result<Self, Failure> {
        let name = adapter.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (config, read) = match adapter.weights_file() {
            Some(file) => {
                let weights = ModelWeights::open_files(&[file])?;
                let read =
                    weights.names().map(|key| Ok((key.to_owned(), weights.tensor(key, &Device::Cpu)?)));
                (adapter.config.clone(), read.collect::<Result<BTreeMap<_, _>, Failure>>()?)
            }
            None => {
                let adapter = StoredAdapter::open(&adapter.path)?;
                let config = serde_json::from_str(&adapter.config().to_json()?).map_err(Error::from)?;
                (config, adapter.tensors(&Device::Cpu)?)
            }
        };
        let mut tensors = BTreeMap::new();
        for (name, tensor) in read {
            let key = Key::parse(&name);
            let clean = clean(&name, &key);
            if tensors.insert(clean.clone(), (key, tensor)).is_some() {
                return Err(Failure::new(
                    format!("two tensors of the adapter are both `{clean}`"),
                    "save the adapter again where it was trained",
                ));
            }
        }
        Ok(Self { name, config, tensors })
    }

    /// Leaves out what is the same in the base model, and biases that are zero; what was left out, in words.
    ///
    /// # Errors
    /// If something differs from the base model, or there is none to compare it with.
    pub fn drop_unchanged(
        &mut self,
        base: Option<&ModelWeights>,
        names: Option<&NameMap>,
    ) -> Result<Option<String>, Failure> {
        let mut dropped = BTreeSet::new();
        for (name, (key, tensor)) in &self.tensors {
            let changed = match key.part {
                Part::LoraBias => !is_zero(tensor)?,
                Part::Parameter | Part::BaseLayer => {
                    let module = names.map_or_else(|| key.path.clone(), |names| names.module_of(&key.path));
                    let own = format!("{module}.{}", key.parameter);
                    let Some(base) = base else { return Err(needs_base(name)) };
                    let known = base.names().any(|known| known == own);
                    !known || !is_same(&base.tensor(&own, &Device::Cpu)?, tensor)?
                }
                _ => continue,
            };
            if changed {
                let what = match key.part {
                    Part::LoraBias => "is a bias of B that is not zero",
                    _ => "is not what the base model has",
                };
                return Err(Failure::new(
                    format!("no adapter of factors only computes the same: `{name}` {what}"),
                    "merge the adapter into the base model with `peft merge`",
                ));
            }
            dropped.insert(name.clone());
        }
        self.tensors.retain(|name, _| !dropped.contains(name));
        if let Some(config) = self.config.as_object_mut() {
            for (field, off) in
                [("modules_to_save", Value::Null), ("bias", json!("none")), ("lora_bias", json!(false))]
            {
                if config.contains_key(field) {
                    config.insert(field.to_owned(), off);
                }
            }
        }
        let count = dropped.len();
        let tensors = if count == 1 { "tensor that changes" } else { "tensors that change" };
        Ok((count > 0).then(|| format!("without {count} {tensors} nothing")))
    }

    /// The adapter.
    ///
    /// # Errors
    /// If the config is not of a method that the library knows.
    pub fn adapter(&self) -> Result<StoredAdapter, Failure> {
        let mut config = self.config.clone();
        if let Some(fields) = config.as_object_mut() {
            // What is null there is refused, and means what is there by default.
            let is_null = |field: &str, value: &Value| {
                value.is_null() && ["rank_pattern", "alpha_pattern", "bias"].contains(&field)
            };
            fields.retain(|field, value| !is_null(field, value));
        }
        let config = PeftConfig::from_json(&config.to_string())?;
        let tensors = self.tensors.iter().map(|(name, (_, tensor))| (name.clone(), tensor.clone())).collect();
        Ok(StoredAdapter::new(&self.name, config, tensors)?)
    }
}

impl AdapterFile {
    /// The safetensors file of an adapter that has PEFT's keys.
    fn weights_file(&self) -> Option<std::path::PathBuf> {
        match self.format {
            Feature::PeftFolder if self.path.is_dir() => Some(self.path.join("adapter_model.safetensors")),
            Feature::PeftFolder => Some(self.path.with_file_name("adapter_model.safetensors")),
            Feature::OtherFileName => Some(self.path.clone()),
            _ => None,
        }
    }
}

/// The key as PEFT writes it.
fn clean(name: &str, key: &Key) -> String {
    let marks = ["lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"];
    let end = match key.part {
        Part::A | Part::B | Part::LoraBias | Part::EmbeddingA | Part::EmbeddingB | Part::Magnitude => {
            let place = |mark: &&str| name.rfind(&format!(".{mark}")).map(|at| (at, mark.len()));
            let mark = marks.iter().max_by_key(|mark| place(mark)).copied().unwrap_or_default();
            if key.parameter.is_empty() { mark.to_owned() } else { format!("{mark}.{}", key.parameter) }
        }
        Part::Parameter => key.parameter.clone(),
        Part::BaseLayer | Part::Method | Part::Tokens | Part::Stranger => {
            let start = format!("{}.", key.path);
            let begins = |at: &usize| *at == 0 || name[..*at].ends_with('.');
            let at = name.rmatch_indices(&start).map(|(at, _)| at).find(begins);
            at.map_or_else(String::new, |at| name[at + start.len()..].to_owned())
        }
    };
    if end.is_empty() { format!("{PREFIX}{}", key.path) } else { format!("{PREFIX}{}.{end}", key.path) }
}

fn needs_base(name: &str) -> Failure {
    Failure::new(
        format!("whether `{name}` differs from the base model shows only the base model"),
        "give it with `--base`",
    )
}

fn is_zero(tensor: &Tensor) -> Result<bool, Failure> {
    let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    Ok(values.iter().all(|value| *value == 0.0))
}

fn is_same(a: &Tensor, b: &Tensor) -> Result<bool, Failure> {
    if a.dims() != b.dims() {
        return Ok(false);
    }
    let values = |tensor: &Tensor| -> Result<Vec<f64>, Failure> {
        Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?)
    };
    Ok(values(a)? == values(b)?)
}

/// A plain adapter of one rank under other paths.
///
/// # Errors
/// If its tensors cannot be read.
pub fn renamed(adapter: &StoredAdapter, names: &NameMap) -> Result<StoredAdapter, Failure> {
    let mut paths = BTreeSet::new();
    let mut tensors = BTreeMap::new();
    for layer in adapter.layers()? {
        let path = names.module_of(layer.path.as_str());
        if layer.kind != StoredKind::Base {
            paths.insert(path.clone());
        }
        tensors
            .extend(layer.tensors.into_iter().map(|(end, tensor)| (format!("{PREFIX}{path}.{end}"), tensor)));
    }
    let mut config: Value = serde_json::from_str(&adapter.config().to_json()?).map_err(Error::from)?;
    let is_plain = |targets: &Value| {
        targets.as_array().is_some_and(|names| {
            names.iter().all(|name| name.as_str().is_some_and(|name| !name.contains('.')))
        })
    };
    if let Some(config) = config.as_object_mut() {
        // They may be about the paths that were.
        let mut is_exact = config.get("target_modules").is_some_and(is_plain);
        for field in ["exclude_modules", "layers_to_transform", "layers_pattern"] {
            if let Some(value) = config.get_mut(field) {
                is_exact &= value.take().is_null();
            }
        }
        if !is_exact {
            config.insert("target_modules".to_owned(), json!(paths));
        }
    }
    Ok(StoredAdapter::new(adapter.name(), PeftConfig::from_json(&config.to_string())?, tensors)?)
}
