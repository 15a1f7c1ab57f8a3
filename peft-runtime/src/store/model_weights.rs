//! The weights of a base model: one safetensors file, several, or a folder with either.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

use super::file::MappedFile;
use super::layout::Layout;
use super::model_files;
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

impl ModelWeights {
    /// Opens a safetensors file, or the weights in a folder: `model.safetensors`, or diffusers'
    /// `diffusion_pytorch_model.safetensors`, or the shards of either.
    ///
    /// # Errors
    /// An error that names the file if one cannot be read or is not a safetensors file; and
    /// [`ShardsError::Pipeline`] if it is the folder of a pipeline, which has several models.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Self::open_files(&[path]);
        }
        Self::open_files(&model_files::find(path)?)
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

    /// The dtypes of the tensors, under safetensors' names.
    #[cfg(feature = "models")]
    pub(crate) fn dtypes(&self) -> BTreeSet<String> {
        let entries = self.files.iter().flat_map(|file| Layout::of(file).tensors);
        entries.map(|entry| entry.dtype.to_string()).collect()
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
