//! The tensors of an adapter, whatever its method, in a file or in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::{Dtype, View};

use super::adapter_files::{self, AdapterFiles};
use super::canonical::{CanonicalKeys, IsLayer, KeyReader};
use super::file::{MappedFile, text_of};
use super::folders::check_here;
use super::keys::{CONFIG_FILE, WEIGHTS_FILE, two_names, with_prefix};
use super::layout::{Layout, TensorEntry};
use super::other_file;
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
    keys: CanonicalKeys,
}

struct Files {
    config: PathBuf,
    weights: PathBuf,
}

/// Tensors under the keys that they were found under.
enum Tensors {
    Mapped { file: MappedFile, entries: BTreeMap<String, TensorEntry> },
    Memory(BTreeMap<String, Tensor>),
}

impl StoredContents {
    /// Opens the adapter in a folder, or the one whose `adapter_config.json` is next to a safetensors file. Config and
    /// weights are from the same save. `is_layer` tells which layers the model has that the adapter is for, if there is one.
    pub(super) fn open(path: &Path, is_layer: Option<IsLayer<'_>>) -> Result<(PeftConfig, Self)> {
        let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_own = [CONFIG_FILE, WEIGHTS_FILE].contains(&file_name);
        // One of the adapter's own files may not have been moved into place yet.
        let is_file = path.is_file() || is_own && !path.is_dir();
        let folder = if is_file { path.parent().unwrap_or(Path::new("")) } else { path };
        let config_path = folder.join(CONFIG_FILE);
        if !is_file {
            check_here(folder)?;
        }
        let AdapterFiles { config, weights } = adapter_files::open(folder)?;
        let text = text_of(&config).map_err(Error::io("read", &config_path))?;
        let config = PeftConfig::from_json(&text).map_err(|error| {
            let is_object = text.trim_start().starts_with('{');
            let other = if is_object { None } else { other_file::recognised(text.as_bytes()) };
            other.unwrap_or(error).in_file(&config_path)
        })?;
        let (weights_path, file) = if is_file && !is_own {
            (path.to_owned(), MappedFile::open(path)?)
        } else {
            let weights_path = folder.join(WEIGHTS_FILE);
            let file = MappedFile::of(&weights?, &weights_path)?;
            (weights_path, file)
        };
        let entries =
            Layout::of(&file).tensors.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
        let files = Some(Files { config: config_path, weights: weights_path });
        let tensors = Tensors::Mapped { file, entries };
        let mut contents = Self { files, tensors, keys: CanonicalKeys::default() };
        contents.read_keys(KeyReader { method: config.method(), is_layer })?;
        Ok((config, contents))
    }

    /// Tensors under PEFT's keys, with or without the prefix.
    ///
    /// # Errors
    /// If two keys mean the same tensor.
    pub(super) fn in_memory(config: &PeftConfig, tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        let tensors = Tensors::Memory(tensors.clone());
        let mut contents = Self { files: None, tensors, keys: CanonicalKeys::default() };
        contents.read_keys(KeyReader { method: config.method(), is_layer: None })?;
        Ok(contents)
    }

    /// Works out anew what the keys mean.
    ///
    /// # Errors
    /// If two keys mean the same tensor, or belong to adapters of different names.
    pub(super) fn read_keys(&mut self, reader: KeyReader<'_>) -> Result<()> {
        let keys = match &self.tensors {
            Tensors::Mapped { entries, .. } => reader.read_all(entries.keys().map(String::as_str)),
            Tensors::Memory(tensors) => reader.read_all(tensors.keys().map(String::as_str)),
        };
        self.keys = keys.map_err(|error| self.of_weights(error))?;
        Ok(())
    }

    /// The keys, as they are in the file, of what says nothing more than other tensors do.
    pub(super) fn superseded(&self) -> &[String] {
        &self.keys.superseded
    }

    /// The tensors that were read from a file of another program, with the config that was read off it.
    ///
    /// # Errors
    /// If two keys mean the same tensor.
    pub(super) fn of_file(
        path: &Path,
        config_path: Option<&Path>,
        config: &PeftConfig,
        tensors: BTreeMap<String, Tensor>,
        is_layer: Option<IsLayer<'_>>,
    ) -> Result<Self> {
        let files = Files { config: config_path.unwrap_or(path).to_owned(), weights: path.to_owned() };
        let tensors = Tensors::Memory(tensors);
        let mut contents = Self { files: Some(files), tensors, keys: CanonicalKeys::default() };
        contents.read_keys(KeyReader { method: config.method(), is_layer })?;
        Ok(contents)
    }

    /// The tensors without those whose keys are `gone`, and with these others, all of them in memory.
    ///
    /// # Errors
    /// If a dtype is not one of candle's.
    pub(super) fn replaced(
        self,
        gone: &dyn Fn(&str) -> bool,
        others: BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        let kept = self.stored().into_iter().filter(|(key, _)| !gone(key));
        let read = |(key, stored): (String, StoredTensor<'_>)| {
            let tensor = (stored.read)(&Device::Cpu).map_err(|error| self.of_weights(error.into()))?;
            Ok((key, tensor))
        };
        let mut tensors = kept.map(read).collect::<Result<BTreeMap<_, _>>>()?;
        tensors.extend(others);
        let found = tensors.keys().map(|key| (key.clone(), key.clone())).collect();
        let keys = CanonicalKeys { found, superseded: self.keys.superseded };
        Ok(Self { files: self.files, tensors: Tensors::Memory(tensors), keys })
    }

    /// The same tensors under other keys.
    ///
    /// # Errors
    /// If two tensors get the same key.
    pub(super) fn renamed(mut self, rename: &dyn Fn(&str) -> String) -> Result<Self> {
        let mut found: BTreeMap<String, String> = BTreeMap::new();
        for (key, old) in &self.keys.found {
            if let Some(first) = found.insert(rename(key), old.clone()) {
                return Err(self.of_weights(two_names(&first, old)));
            }
        }
        // The keys may be read once more, so that the tensors go under the new ones.
        self.tensors = match self.tensors {
            Tensors::Mapped { file, entries } => Tensors::Mapped { file, entries: under(&found, entries) },
            Tensors::Memory(tensors) => Tensors::Memory(under(&found, tensors)),
        };
        self.keys.found = found.into_keys().map(|key| (key.clone(), key)).collect();
        Ok(self)
    }

    /// What is known about every tensor without reading it, in the order of the keys.
    pub(super) fn shapes(&self) -> Vec<StoredShape> {
        let stored = |key: &String| {
            let (shape, dtype) = (self.shape(key)?.to_vec(), self.dtype(key)?);
            let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            Some(StoredShape { key: with_prefix(key), dtype: dtype.to_string(), shape, bytes })
        };
        self.keys.found.keys().filter_map(stored).collect()
    }

    /// The keys without the prefix.
    pub(super) fn keys(&self) -> Vec<&str> {
        self.keys.found.keys().map(String::as_str).collect()
    }

    /// The shape of the tensor at `key`, a key without the prefix.
    pub(super) fn shape(&self, key: &str) -> Option<&[usize]> {
        let found = self.keys.found.get(key)?;
        match &self.tensors {
            Tensors::Mapped { entries, .. } => entries.get(found).map(|entry| entry.shape.as_slice()),
            Tensors::Memory(tensors) => tensors.get(found).map(Tensor::dims),
        }
    }

    /// The dtype of the tensor at `key`, a key without the prefix.
    pub(super) fn dtype(&self, key: &str) -> Option<Dtype> {
        let found = self.keys.found.get(key)?;
        match &self.tensors {
            Tensors::Mapped { entries, .. } => entries.get(found).map(|entry| entry.dtype),
            Tensors::Memory(tensors) => tensors.get(found).map(View::dtype),
        }
    }

    /// All tensors under their keys without the prefix, each read when it is asked for.
    pub(super) fn stored(&self) -> BTreeMap<String, StoredTensor<'_>> {
        let stored = |key: &str| Some((key.to_owned(), self.stored_at(key)?));
        self.keys().into_iter().filter_map(stored).collect()
    }

    /// The tensor at `key`, a key without the prefix.
    pub(super) fn stored_at(&self, key: &str) -> Option<StoredTensor<'_>> {
        let found = self.keys.found.get(key)?;
        match &self.tensors {
            Tensors::Mapped { file, entries } => {
                let entry = entries.get(found)?;
                let read = Box::new(move |device: &Device| entry.load(file, device));
                let values = (entry.dtype == Dtype::F32).then(|| Box::new(move || entry.floats(file)) as _);
                Some(StoredTensor { shape: entry.shape.clone(), read, values })
            }
            Tensors::Memory(tensors) => Some(StoredTensor::in_memory(tensors.get(found)?)),
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

/// The values under new keys, of which `found` has the old ones.
fn under<V>(found: &BTreeMap<String, String>, mut values: BTreeMap<String, V>) -> BTreeMap<String, V> {
    found.iter().filter_map(|(key, old)| Some((key.clone(), values.remove(old)?))).collect()
}
