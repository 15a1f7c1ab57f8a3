//! The weights of a base model: one safetensors file, several, or a folder with either.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use serde::Deserialize;

use super::file::{MappedFile, read_text};
use super::layout::Layout;
use super::stored_contents::StoredShape;
use crate::error::{Error, Result, ShardsError};

/// The weights of a base model, read through memory maps when they are asked for.
///
/// ```no_run
/// use candle_core::{DType, Device};
/// use peft_runtime::ModelWeights;
///
/// let vb = ModelWeights::open("path/to/model")?.var_builder(DType::F32, &Device::Cpu);
/// let weight = vb.get((384, 384), "encoder.layer.0.attention.self.query.weight")?;
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub struct ModelWeights {
    files: Vec<MappedFile>,
    /// The file each tensor is in.
    index: BTreeMap<String, usize>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const SHARDED: &str = "model.safetensors.index.json";

/// The files that an index names, each once, all of them in the folder of the index.
pub(crate) fn shard_names(index: &Path) -> Result<BTreeSet<String>> {
    let text = read_text(index)?;
    let shards: ShardIndex =
        serde_json::from_str(&text).map_err(|error| Error::from(ShardsError::Index(error)).in_file(index))?;
    let names: BTreeSet<String> = shards.weight_map.into_values().collect();
    if let Some(name) = names.iter().find(|name| !stays_inside(name)) {
        return Err(Error::from(ShardsError::OutsideFolder { name: name.clone() }).in_file(index));
    }
    Ok(names)
}

/// Whether a name from a file stays below the folder that it is joined to, on any system.
fn stays_inside(name: &str) -> bool {
    let normal = |component: Component<'_>| matches!(component, Component::Normal(_));
    !name.is_empty() && !name.contains(['\\', ':', '\0']) && Path::new(name).components().all(normal)
}

impl ModelWeights {
    /// Opens a safetensors file, or the `model.safetensors` or its shards in a folder.
    ///
    /// # Errors
    /// An error that names the file if one cannot be read or is not a safetensors file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Self::open_files(&[path]);
        }
        let index = path.join(SHARDED);
        if !index.is_file() {
            return Self::open_files(&[path.join(SINGLE)]);
        }
        let shards: Vec<PathBuf> = shard_names(&index)?.into_iter().map(|name| path.join(name)).collect();
        Self::open_files(&shards)
    }

    /// Opens several safetensors files as one.
    ///
    /// # Errors
    /// As [`open`](Self::open), and if two files hold the same tensor.
    pub fn open_files<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        let files = paths.iter().map(|path| MappedFile::open(path.as_ref())).collect::<Result<Vec<_>>>()?;
        let mut index = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(first) = index.insert(name.clone(), number).and_then(|first| files.get(first)) {
                    let (tensor, first) = (name.clone(), first.path().to_owned());
                    return Err(
                        Error::from(ShardsError::DuplicateTensor { tensor, first }).in_file(file.path())
                    );
                }
            }
        }
        Ok(Self { files, index })
    }

    /// The files, in the order given.
    pub(super) fn files(&self) -> &[MappedFile] {
        &self.files
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// What the files say of every tensor, in the order of the names.
    pub fn shapes(&self) -> Vec<StoredShape> {
        let mut shapes: Vec<StoredShape> = self
            .files
            .iter()
            .flat_map(|file| Layout::of(file).tensors)
            .map(|entry| StoredShape {
                bytes: entry.size(),
                dtype: entry.dtype.to_string(),
                shape: entry.shape,
                key: entry.name,
            })
            .collect();
        shapes.sort_by(|a, b| a.key.cmp(&b.key));
        shapes
    }

    /// Reads one tensor as it is stored.
    ///
    /// # Errors
    /// If there is no such tensor, or its dtype is not one of candle's.
    pub fn tensor(&self, name: &str, device: &Device) -> candle_core::Result<Tensor> {
        match self.index.get(name).and_then(|file| self.files.get(*file)) {
            Some(file) => file.tensor(name, device),
            None => Err(candle_core::Error::CannotFindTensor { path: name.to_owned() }.bt()),
        }
    }

    /// A `VarBuilder` over the weights, for candle's models.
    pub fn var_builder(self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self), dtype, device.clone())
    }
}

/// The modules that a base model has parameters of, if it lists them.
pub(super) fn module_names<B: 'static>(base: &B) -> BTreeSet<String> {
    let weights = (base as &dyn Any).downcast_ref::<ModelWeights>();
    let names = weights.into_iter().flat_map(ModelWeights::names);
    names.filter_map(|name| name.rsplit_once('.')).map(|(module, _)| module.to_owned()).collect()
}

impl SimpleBackend for ModelWeights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() == &shape {
            return Ok(tensor);
        }
        let msg = format!("the shape of `{name}` does not fit the model");
        Err(candle_core::Error::UnexpectedShape { msg, expected: shape, got: tensor.shape().clone() }.bt())
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.tensor(name, device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }
}
