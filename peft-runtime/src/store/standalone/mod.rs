//! Adapters without a model: read, compared, combined and converted by their keys only.

mod base;
mod layers;
mod plain;
mod skeleton;
mod stored_sum;
mod update;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::adapter_files::holds_adapter;
use super::keys::with_prefix;
use super::save::write_folder;
use super::stored_contents::{StoredContents, StoredShape};
use crate::adapter::{AdapterMethod, StoredTensor};
use crate::error::{Error, Result};
use crate::inject::name_fault;
use crate::method::PeftConfig;

pub use base::BaseWeights;
pub use layers::{StoredKind, StoredLayer};
pub(super) use skeleton::{Skeleton, layer_shapes, split_parameter};

/// An adapter without a model: its config, and its tensors in a file or in memory.
///
/// ```no_run
/// use peft_runtime::StoredAdapter;
///
/// let adapter = StoredAdapter::open("path/to/adapter")?;
/// for layer in adapter.layers()? {
///     println!("{} has rank {:?}", layer.path, layer.rank);
/// }
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub struct StoredAdapter {
    name: String,
    config: PeftConfig,
    contents: StoredContents,
}

impl fmt::Debug for StoredAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensors = self.keys().len();
        f.debug_struct("StoredAdapter")
            .field("name", &self.name)
            .field("tensors", &tensors)
            .finish_non_exhaustive()
    }
}

impl StoredAdapter {
    /// Opens the adapter in a folder, or the one whose `adapter_config.json` is next to a safetensors file.
    ///
    /// Tensors are read when they are asked for.
    ///
    /// # Errors
    /// An error that names the file if one cannot be read or is not what it should be.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let (config, contents) = StoredContents::open(path.as_ref())?;
        let folder = contents.folder();
        let name = std::path::absolute(&folder).unwrap_or(folder);
        let name = name.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Self { name: adapter_name(&name.unwrap_or_default()), config, contents })
    }

    /// An adapter in memory, with tensors under PEFT's keys, with or without the prefix.
    ///
    /// # Errors
    /// [`StateDictError::DuplicateKey`](crate::error::StateDictError::DuplicateKey) if two keys mean the same tensor.
    pub fn new(name: &str, config: impl Into<PeftConfig>, tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        let config = config.into();
        let contents = StoredContents::in_memory(&config, &tensors)?;
        Ok(Self { name: adapter_name(name), config, contents })
    }

    /// Whether there is an adapter in `folder` itself, even one that a killed process had saved but not yet moved into
    /// place.
    pub fn is_in(folder: impl AsRef<Path>) -> bool {
        holds_adapter(folder.as_ref())
    }

    /// The name of its folder, changed where it is not a valid adapter name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its config.
    pub fn config(&self) -> &PeftConfig {
        &self.config
    }

    /// What is known about every tensor without reading it, in the order of the keys.
    pub fn shapes(&self) -> Vec<StoredShape> {
        self.contents.shapes()
    }

    /// All tensors under PEFT's keys, as they are stored.
    ///
    /// # Errors
    /// If a dtype is not one of candle's.
    pub fn tensors(&self, device: &Device) -> Result<BTreeMap<String, Tensor>> {
        let stored = self.contents.stored();
        let read = |(key, tensor): (String, StoredTensor<'_>)| {
            let tensor = (tensor.read)(device).map_err(|error| self.of_weights(error.into()))?;
            Ok((with_prefix(&key), tensor))
        };
        stored.into_iter().map(read).collect()
    }

    /// Writes config, weights and model card into `folder`: both files of the adapter in one step, or neither.
    ///
    /// # Errors
    /// [`Error::Io`]; the files that were there are then untouched.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let (folder, method) = (folder.as_ref(), self.config.method());
        let tensors = self.tensors(&Device::Cpu)?;
        write_folder(folder, folder, &self.config.to_json()?, &tensors, method)
    }

    /// Its method.
    pub(super) fn method(&self) -> &dyn AdapterMethod {
        self.config.method()
    }

    /// The keys of parameters of the base model, and of layers that train in full.
    pub(super) fn parameter_keys(&self) -> impl Iterator<Item = &str> {
        self.keys().into_iter().filter(|key| self.method().split_key(key).is_none())
    }

    /// Its tensors, and the files that they are read from.
    pub(super) fn contents(&self) -> &StoredContents {
        &self.contents
    }

    /// The keys without the prefix.
    pub(super) fn keys(&self) -> Vec<&str> {
        self.contents.keys()
    }

    /// The shape of the tensor at `key`, a key without the prefix.
    pub(super) fn shape(&self, key: &str) -> Option<&[usize]> {
        self.contents.shape(key)
    }

    /// The tensor at `key`, a key without the prefix.
    pub(super) fn stored_at(&self, key: &str) -> Option<StoredTensor<'_>> {
        self.contents.stored_at(key)
    }

    /// The dtype of the tensor at `key`, a key without the prefix.
    pub(super) fn dtype(&self, key: &str) -> Option<safetensors::Dtype> {
        self.contents.dtype(key)
    }

    /// The layers that the adapter is on, each with the ends of its keys.
    pub(super) fn layer_keys(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut layers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (path, end) in self.keys().into_iter().filter_map(|key| self.method().split_key(key)) {
            layers.entry(path).or_default().push(end);
        }
        layers
    }

    /// The settings, with what a model would have supplied filled in.
    pub(super) fn explicit_method(&self) -> Arc<dyn AdapterMethod> {
        self.method().without_model(&self.layer_keys())
    }

    /// The same error, reported for the config file.
    pub(super) fn of_config(&self, error: Error) -> Error {
        self.contents.of_config(error)
    }

    /// The same error, reported for the weights file.
    pub(super) fn of_weights(&self, error: Error) -> Error {
        self.contents.of_weights(error)
    }
}

/// `name` with every character that an adapter's name cannot have replaced.
fn adapter_name(name: &str) -> String {
    const LONGEST: usize = 100;
    let mut allowed = String::new();
    for c in name.chars().map(|c| if c.is_control() || ".:/\\".contains(c) { '_' } else { c }) {
        if allowed.len() + c.len_utf8() > LONGEST {
            break;
        }
        allowed.push(c);
    }
    if name_fault(&allowed).is_none() { allowed } else { "adapter".to_owned() }
}
