//! Adapters without a model: read, compared, combined and converted by their keys only.

mod empty_layer;
mod empty_parameter;
mod gguf_file;
mod image_files;
mod keys;
mod layers;
#[cfg(feature = "models")]
mod on_model;
mod plain;
mod skeleton;
mod stored_sum;
mod unmatched;
mod update;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::adapter_files::holds_adapter;
use super::bare_parameters::{BareParameters, bare_parameters};
use super::base_weights::BaseWeights;
use super::canonical::{IsLayer, KeyReader};
use super::formats::{self, Base, Opened, PEFT};
use super::keys::with_prefix;
use super::save::write_folder;
use super::stored_contents::{StoredContents, StoredShape};
use crate::adapter::{AdapterMethod, StoredTensor};
use crate::error::{Error, Result};
use crate::inject::name_fault;
use crate::method::PeftConfig;

pub use image_files::{ImageProgram, PipelineModel};
pub use layers::{StoredKind, StoredLayer};
#[cfg(feature = "models")]
pub(crate) use on_model::load_stored_adapter;
pub(super) use skeleton::{Skeleton, layer_shapes, split_parameter};
pub(super) use unmatched::of_adapted_layers;

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
    format: &'static str,
    left_out: Vec<String>,
    /// The bare parameters of the base model that it is on, where that is known.
    parameters: BareParameters,
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
    /// Opens the adapter at `path`: a folder, or a file of tensors, whose config may lie next to it.
    ///
    /// The format is found by the content: PEFT's own, as safetensors or as `adapter_model.bin`, and those of other programs
    /// that say enough without their base model. Tensors of PEFT's safetensors files are read when they are asked for.
    ///
    /// # Errors
    /// An error that names the file if one cannot be read or is not what it should be; and
    /// [`AdapterFileError::NeedsBase`](crate::error::AdapterFileError::NeedsBase) if the format has to be read together with
    /// the base model, as [`open_for`](Self::open_for) does.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::of_files(path.as_ref(), None)
    }

    /// Opens the adapter at `path` in any format, for this base model: its modules get the names that they have there.
    ///
    /// A name that the base model has stays as it is. Another one is looked for without the modules that models are wrapped in
    /// (`model`, `language_model`, `transformer`, a second `base_model.model`), and must then mean exactly one.
    ///
    /// # Errors
    /// As [`open`](Self::open); and
    /// [`AdapterFileError::Ambiguous`](crate::error::AdapterFileError::Ambiguous) or
    /// [`AdapterFileError::OtherNames`](crate::error::AdapterFileError::OtherNames), with the names that fit, if modules are
    /// called otherwise in the base model.
    pub fn open_for(path: impl AsRef<Path>, base: &BaseWeights) -> Result<Self> {
        Self::of_files(path.as_ref(), Some(&Base::from(base)))
    }

    fn of_files(path: &Path, base: Option<&Base>) -> Result<Self> {
        let Opened { format, config, contents, left_out } = formats::open(path, base)?;
        let folder = contents.folder();
        let place = if format != PEFT && path.is_file() { path.with_extension("") } else { folder };
        let name = std::path::absolute(&place).unwrap_or(place);
        let name = name.file_name().map(|name| name.to_string_lossy().into_owned());
        let found = base.map(|base| {
            let known = (&base.names, base.config.as_ref());
            bare_parameters(config.method(), &contents, &base.shapes, known)
        });
        let parameters =
            found.transpose().map_err(|error| contents.of_weights(error.into()))?.unwrap_or_default();
        Ok(Self {
            name: adapter_name(&name.unwrap_or_default()),
            config,
            contents,
            format,
            left_out,
            parameters,
        })
    }

    /// An adapter in memory, with tensors under PEFT's keys, with or without the prefix.
    ///
    /// # Errors
    /// [`StateDictError::DuplicateKey`](crate::error::StateDictError::DuplicateKey) if two keys mean the same tensor.
    pub fn new(name: &str, config: impl Into<PeftConfig>, tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        let config = config.into();
        let contents = StoredContents::in_memory(&config, &tensors)?;
        let (name, left_out) = (adapter_name(name), Vec::new());
        Ok(Self { name, config, contents, format: PEFT, left_out, parameters: BareParameters::new() })
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

    /// The formats that [`open`](Self::open) reads: `peft`, `mlx`, `gguf`, `kohya` and others.
    pub fn formats() -> impl Iterator<Item = &'static str> {
        formats::names()
    }

    /// The format of the files that it was read from, one of [`formats`](Self::formats).
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// The keys of parts that are for other models than the one it was opened for, a text encoder next to a UNet for example.
    /// They were left out.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
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

    /// The keys, as they are in the file, of what says nothing more than other tensors do, and is not read: a full copy under
    /// a second name, the base model's own weight next to it.
    pub fn superseded(&self) -> &[String] {
        self.contents.superseded()
    }

    /// Works out what the keys mean for a base model, of which `is_layer` knows the layers.
    pub(super) fn read_keys_for(&mut self, is_layer: IsLayer<'_>) -> Result<()> {
        let method = self.config.method();
        self.contents.read_keys(KeyReader { method, is_layer: Some(is_layer) })
    }

    /// Its tensors, and the files that they are read from.
    pub(super) fn contents(&self) -> &StoredContents {
        &self.contents
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
