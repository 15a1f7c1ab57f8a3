//! Adapters apart from any model: read, compared, combined and converted by their keys alone.

mod base;
mod combine;
mod layers;
mod plain;
mod skeleton;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::View;

use super::file::MappedFile;
use super::keys::{CONFIG_FILE, WEIGHTS_FILE, canonical, with_prefix};
use super::layout::{Layout, Place};
use super::load::read_config;
use super::save::write_folder;
use crate::adapter::{StoredTensor, split_layer_key};
use crate::config::{PeftConfig, TokenIndices};
use crate::error::{Error, Result};
use crate::inject::name_fault;

pub use base::BaseWeights;
pub use layers::{StoredKind, StoredLayer};
pub(super) use skeleton::{Skeleton, is_transposed, layer_shapes, split_parameter};

/// An adapter apart from any model: its config, and its tensors in a file or in memory.
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
    /// The files that it is read from.
    files: Option<Files>,
    contents: Contents,
}

struct Files {
    config: PathBuf,
    weights: PathBuf,
}

/// Tensors under their keys without PEFT's prefix.
enum Contents {
    Mapped { file: MappedFile, places: BTreeMap<String, Place> },
    Memory(BTreeMap<String, Tensor>),
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

/// What a file says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredShape {
    /// Its key as PEFT writes it.
    pub key: String,
    /// Its dtype under safetensors' name.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The number of its bytes.
    pub bytes: usize,
}

impl StoredAdapter {
    /// Opens the adapter in a folder, or the one whose `adapter_config.json` lies beside a safetensors file.
    ///
    /// Tensors are read when they are asked for.
    ///
    /// # Errors
    /// An error that names the file if one cannot be read or is not what it should be.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let folder = if path.is_file() { path.parent().unwrap_or(Path::new("")) } else { path };
        let is_config = path.file_name().is_some_and(|name| name == CONFIG_FILE);
        let weights = if path.is_file() && !is_config { path.to_owned() } else { folder.join(WEIGHTS_FILE) };
        let config_path = folder.join(CONFIG_FILE);
        let config = read_config(&config_path)?;
        let file = MappedFile::open(&weights)?;
        let layout = Layout::read(&file)?;
        let place = |place: Place| (canonical(&place.name).to_owned(), place);
        let places = layout.tensors.into_iter().map(place).collect();
        let name = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let name = name.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Self {
            name: adapter_name(&name.unwrap_or_default()),
            config,
            files: Some(Files { config: config_path, weights }),
            contents: Contents::Mapped { file, places },
        })
    }

    /// An adapter in memory, with tensors under PEFT's keys, with or without the prefix.
    pub fn new(name: &str, config: impl Into<PeftConfig>, tensors: BTreeMap<String, Tensor>) -> Self {
        let tensors = tensors.into_iter().map(|(key, tensor)| (canonical(&key).to_owned(), tensor));
        let contents = Contents::Memory(tensors.collect());
        Self { name: adapter_name(name), config: config.into(), files: None, contents }
    }

    /// The name of its folder, as far as an adapter can be called so.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its config.
    pub fn config(&self) -> &PeftConfig {
        &self.config
    }

    /// What is known of every tensor without reading it, in the order of the keys.
    pub fn shapes(&self) -> Vec<StoredShape> {
        match &self.contents {
            Contents::Mapped { places, .. } => places
                .iter()
                .map(|(key, place)| StoredShape {
                    key: with_prefix(key),
                    dtype: place.dtype.to_string(),
                    shape: place.shape.clone(),
                    bytes: place.size(),
                })
                .collect(),
            Contents::Memory(tensors) => tensors
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

    /// All tensors under PEFT's keys, as they are stored.
    ///
    /// # Errors
    /// If a dtype is not one of candle's.
    pub fn tensors(&self, device: &Device) -> Result<BTreeMap<String, Tensor>> {
        let stored = self.stored();
        let read = |(key, tensor): (String, StoredTensor<'_>)| {
            let tensor = (tensor.read)(device).map_err(|error| self.of_weights(error.into()))?;
            Ok((with_prefix(&key), tensor))
        };
        stored.into_iter().map(read).collect()
    }

    /// Writes config, weights and model card into `folder`, each file whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`]; the files that were there are then untouched.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let (folder, method) = (folder.as_ref(), self.config.method());
        let tensors = self.tensors(&Device::Cpu)?;
        write_folder(folder, folder, &self.config.to_json()?, &tensors, method)
    }

    /// The keys without the prefix.
    pub(super) fn keys(&self) -> Vec<&str> {
        match &self.contents {
            Contents::Mapped { places, .. } => places.keys().map(String::as_str).collect(),
            Contents::Memory(tensors) => tensors.keys().map(String::as_str).collect(),
        }
    }

    /// The shape of the tensor at `key`, which is without the prefix.
    pub(super) fn shape(&self, key: &str) -> Option<&[usize]> {
        match &self.contents {
            Contents::Mapped { places, .. } => places.get(key).map(|place| place.shape.as_slice()),
            Contents::Memory(tensors) => tensors.get(key).map(Tensor::dims),
        }
    }

    /// All tensors under their keys without the prefix, each read when it is asked for.
    pub(super) fn stored(&self) -> BTreeMap<String, StoredTensor<'_>> {
        let stored = |key: &str| Some((key.to_owned(), self.stored_at(key)?));
        self.keys().into_iter().filter_map(stored).collect()
    }

    /// The tensor at `key`, which is without the prefix.
    pub(super) fn stored_at(&self, key: &str) -> Option<StoredTensor<'_>> {
        match &self.contents {
            Contents::Mapped { file, places } => {
                let place = places.get(key)?;
                let read = Box::new(move |device: &Device| place.load(file, device));
                Some(StoredTensor { shape: place.shape.clone(), read })
            }
            Contents::Memory(tensors) => Some(StoredTensor::in_memory(tensors.get(key)?)),
        }
    }

    /// The dtype of the tensor at `key`, which is without the prefix.
    pub(super) fn dtype(&self, key: &str) -> Option<safetensors::Dtype> {
        match &self.contents {
            Contents::Mapped { places, .. } => places.get(key).map(|place| place.dtype),
            Contents::Memory(tensors) => tensors.get(key).map(View::dtype),
        }
    }

    /// The layers that the adapter is on, by the ends of their keys.
    pub(super) fn layer_keys(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut layers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (path, end) in self.keys().into_iter().filter_map(split_layer_key) {
            layers.entry(path).or_default().push(end);
        }
        layers
    }

    /// The config with what a model would have told: which embedding a bare list of tokens means.
    pub(super) fn explicit_config(&self) -> PeftConfig {
        let PeftConfig::Lora(config) = &self.config else { return self.config.clone() };
        let Some(TokenIndices::Input(tokens)) = config.trainable_tokens() else {
            return self.config.clone();
        };
        let layers = self.layer_keys();
        let mut embeddings =
            layers.iter().filter(|(_, ends)| ends.iter().any(|end| end.starts_with("token_adapter.")));
        match (embeddings.next(), embeddings.next()) {
            (Some((path, _)), None) => {
                let by_name = [((*path).to_owned(), tokens.clone())].into();
                PeftConfig::Lora(config.clone().with_trainable_tokens(TokenIndices::ByName(by_name)))
            }
            _ => self.config.clone(),
        }
    }

    /// The same error, said of the file of the config.
    pub(super) fn of_config(&self, error: Error) -> Error {
        match &self.files {
            Some(files) => error.in_file(&files.config),
            None => error,
        }
    }

    /// The same error, said of the file of the weights.
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

/// `name` with another character for each that an adapter's name cannot have.
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
