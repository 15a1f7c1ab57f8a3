//! The tensors of an adapter, whatever its method, in a file or in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::View;

use super::adapter_files::{self, AdapterFiles};
use super::file::{MappedFile, text_of};
use super::keys::{CONFIG_FILE, WEIGHTS_FILE, by_canonical_key, canonical, two_names, with_prefix};
use super::layout::{Layout, TensorEntry};
use crate::adapter::StoredTensor;
use crate::error::{Error, Result};
use crate::method::PeftConfig;

/// What a file says about one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredShape {
    /// Its key as PEFT writes it; in a base model, its name.
    pub key: String,
    /// Its dtype, as safetensors names it.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its size in bytes.
    pub bytes: usize,
}

/// An adapter without its config.
pub(super) struct StoredContents {
    /// The files that it is read from.
    files: Option<Files>,
    tensors: Tensors,
}

struct Files {
    config: PathBuf,
    weights: PathBuf,
}

/// Tensors under their keys without PEFT's prefix.
enum Tensors {
    Mapped { file: MappedFile, entries: BTreeMap<String, TensorEntry> },
    Memory(BTreeMap<String, Tensor>),
}

impl StoredContents {
    /// Opens the adapter in a folder, or the one whose `adapter_config.json` is next to a safetensors file. Config and
    /// weights are from the same save.
    pub(super) fn open(path: &Path) -> Result<(PeftConfig, Self)> {
        let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_own = [CONFIG_FILE, WEIGHTS_FILE].contains(&file_name);
        // One of the adapter's own files may not have been moved into place yet.
        let is_file = path.is_file() || is_own && !path.is_dir();
        let folder = if is_file { path.parent().unwrap_or(Path::new("")) } else { path };
        let config_path = folder.join(CONFIG_FILE);
        let AdapterFiles { config, weights } = adapter_files::open(folder)?;
        let text = text_of(&config).map_err(Error::io("read", &config_path))?;
        let config = PeftConfig::from_json(&text).map_err(|error| error.in_file(&config_path))?;
        let (weights_path, file) = if is_file && !is_own {
            (path.to_owned(), MappedFile::open(path)?)
        } else {
            let weights_path = folder.join(WEIGHTS_FILE);
            let file = MappedFile::of(&weights?, &weights_path)?;
            (weights_path, file)
        };
        let mut entries: BTreeMap<String, TensorEntry> = BTreeMap::new();
        for entry in Layout::of(&file).tensors {
            let key = canonical(config.method(), &entry.name).to_owned();
            if let Some(other) = entries.get(&key) {
                return Err(two_names(&other.name, &entry.name).in_file(&weights_path));
            }
            entries.insert(key, entry);
        }
        let files = Some(Files { config: config_path, weights: weights_path });
        Ok((config, Self { files, tensors: Tensors::Mapped { file, entries } }))
    }

    /// Tensors under PEFT's keys, with or without the prefix.
    ///
    /// # Errors
    /// If two keys mean the same tensor.
    pub(super) fn in_memory(config: &PeftConfig, tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        let tensors = by_canonical_key(config.method(), tensors)?.into_iter();
        let tensors = tensors.map(|(key, tensor)| (key.to_owned(), tensor.clone())).collect();
        Ok(Self { files: None, tensors: Tensors::Memory(tensors) })
    }

    /// What is known about every tensor without reading it, in the order of the keys.
    pub(super) fn shapes(&self) -> Vec<StoredShape> {
        match &self.tensors {
            Tensors::Mapped { entries, .. } => entries
                .iter()
                .map(|(key, entry)| StoredShape {
                    key: with_prefix(key),
                    dtype: entry.dtype.to_string(),
                    shape: entry.shape.clone(),
                    bytes: entry.size(),
                })
                .collect(),
            Tensors::Memory(tensors) => tensors
                .iter()
                .map(|(key, tensor)| StoredShape {
                    key: with_prefix(key),
                    dtype: View::dtype(tensor).to_string(),
                    shape: tensor.dims().to_vec(),
                    bytes: View::data_len(tensor),
                })
                .collect(),
        }
    }

    /// The keys without the prefix.
    pub(super) fn keys(&self) -> Vec<&str> {
        match &self.tensors {
            Tensors::Mapped { entries, .. } => entries.keys().map(String::as_str).collect(),
            Tensors::Memory(tensors) => tensors.keys().map(String::as_str).collect(),
        }
    }

    /// The shape of the tensor at `key`, a key without the prefix.
    pub(super) fn shape(&self, key: &str) -> Option<&[usize]> {
        match &self.tensors {
            Tensors::Mapped { entries, .. } => entries.get(key).map(|entry| entry.shape.as_slice()),
            Tensors::Memory(tensors) => tensors.get(key).map(Tensor::dims),
        }
    }

    /// The dtype of the tensor at `key`, a key without the prefix.
    pub(super) fn dtype(&self, key: &str) -> Option<safetensors::Dtype> {
        match &self.tensors {
            Tensors::Mapped { entries, .. } => entries.get(key).map(|entry| entry.dtype),
            Tensors::Memory(tensors) => tensors.get(key).map(View::dtype),
        }
    }

    /// All tensors under their keys without the prefix, each read when it is asked for.
    pub(super) fn stored(&self) -> BTreeMap<String, StoredTensor<'_>> {
        let stored = |key: &str| Some((key.to_owned(), self.stored_at(key)?));
        self.keys().into_iter().filter_map(stored).collect()
    }

    /// The tensor at `key`, a key without the prefix.
    pub(super) fn stored_at(&self, key: &str) -> Option<StoredTensor<'_>> {
        match &self.tensors {
            Tensors::Mapped { file, entries } => {
                let entry = entries.get(key)?;
                let read = Box::new(move |device: &Device| entry.load(file, device));
                Some(StoredTensor { shape: entry.shape.clone(), read })
            }
            Tensors::Memory(tensors) => Some(StoredTensor::in_memory(tensors.get(key)?)),
        }
    }

    /// The same error, reported for the config file.
    pub(super) fn of_config(&self, error: Error) -> Error {
        match &self.files {
            Some(files) => error.in_file(&files.config),
            None => error,
        }
    }

    /// The same error, reported for the weights file.
    pub(super) fn of_weights(&self, error: Error) -> Error {
        match &self.files {
            Some(files) => error.in_file(&files.weights),
            None => error,
        }
    }

    /// Where its files are; empty for an adapter in memory.
    pub(super) fn folder(&self) -> PathBuf {
        let folder = self.files.as_ref().and_then(|files| files.config.parent());
        folder.map(Path::to_owned).unwrap_or_default()
    }
}
