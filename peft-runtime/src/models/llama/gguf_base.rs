//! The tensors of a GGUF file as base weights: dense, under transformers' names, with transformers' order of rows.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::quantized::gguf_file::{Content, TensorInfo};
use candle_core::{DType, Device, Error as CandleError, Result as CandleResult, Shape, Tensor, bail};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;
use serde_json::{Value, json};

use super::gguf::name_in_file;
use super::gguf_metadata::{Heads, heads_of};
use crate::error::{Error, Result};
use crate::path::ModulePath;
use crate::store::{in_halves, in_pairs, read_gguf_content};

/// A file whose tensors are read when they are asked for.
pub(super) struct GgufBase {
    path: PathBuf,
    file: Mutex<File>,
    content: Content,
    heads: Heads,
    size: u64,
}

/// A tensor of the file.
pub(super) struct GgufTensor<'f> {
    pub(super) name: &'f str,
    pub(super) info: &'f TensorInfo,
    /// Where its bytes begin in the file.
    pub(super) start: u64,
}

impl GgufTensor<'_> {
    /// The number of its bytes.
    pub(super) fn size(&self) -> usize {
        let dtype = self.info.ggml_dtype;
        self.info.shape.elem_count() / dtype.block_size().max(1) * dtype.type_size()
    }
}

impl GgufBase {
    /// # Errors
    /// An error that names the file if it cannot be read or holds another kind of model.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io("read", path))?;
        let size = file.metadata().map_err(Error::io("read", path))?.len();
        let read = read_head(&mut BufReader::new(&mut file), size);
        let (content, heads) = read.map_err(|error| Error::from(error).in_file(path))?;
        Ok(Self { path: path.to_owned(), file: Mutex::new(file), content, heads, size })
    }

    /// The number of the file's bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// What `config.json` would say.
    pub(super) fn model_config(&self) -> Value {
        let tied = !self.content.tensor_infos.contains_key("output.weight");
        json!({ "model_type": self.heads.architecture.model_type(), "tie_word_embeddings": tied })
    }

    /// All tensors, in the order of their bytes.
    pub(super) fn tensors(&self) -> Vec<GgufTensor<'_>> {
        let infos = self.content.tensor_infos.iter();
        let start = |info: &TensorInfo| self.content.tensor_data_offset + info.offset;
        let mut tensors: Vec<_> =
            infos.map(|(name, info)| GgufTensor { name, info, start: start(info) }).collect();
        tensors.sort_by(|a, b| (a.start, a.name).cmp(&(b.start, b.name)));
        tensors
    }

    /// Some bytes of the file.
    pub(super) fn bytes(&self, start: u64, length: usize) -> Result<Vec<u8>> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = vec![0; length];
        let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut bytes));
        read.map_err(Error::io("read", &self.path))?;
        Ok(bytes)
    }

    /// A tensor of transformers with the rows in the file's order.
    pub(super) fn in_file_order(&self, name: &str, tensor: &Tensor) -> Result<Tensor> {
        let ordered = match self.heads.interleaved(name) {
            Some(heads) => of_pairs(in_pairs(tensor, heads), tensor, heads),
            None => Ok(tensor.clone()),
        };
        ordered.map_err(Error::on_layer(&ModulePath::from(name)))
    }
}

impl SimpleBackend for GgufBase {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> CandleResult<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if *tensor.shape() == shape {
            return Ok(tensor);
        }
        let msg = format!("the shape of `{name}` does not fit the model");
        Err(CandleError::UnexpectedShape { msg, expected: shape, got: tensor.shape().clone() }.bt())
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> CandleResult<Tensor> {
        let own = name_in_file(name)?;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let tensor = self.content.tensor(&mut *file, &own, &Device::Cpu)?.dequantize(&Device::Cpu)?;
        let tensor = match self.heads.interleaved(name) {
            Some(heads) => of_pairs(in_halves(&tensor, heads), &tensor, heads)?,
            None => tensor,
        };
        tensor.to_dtype(dtype)?.to_device(device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        name_in_file(name).is_ok_and(|name| self.content.tensor_infos.contains_key(&name))
    }
}

/// What a file says of its tensors and of its model.
fn read_head<R: Read + Seek>(reader: &mut R, size: u64) -> CandleResult<(Content, Heads)> {
    let content = read_gguf_content(reader, size)?;
    let heads = heads_of(&content)?;
    Ok((content, heads))
}

/// Reordered rows, or the error that they cannot be.
fn of_pairs(reordered: CandleResult<Option<Tensor>>, tensor: &Tensor, heads: usize) -> CandleResult<Tensor> {
    match reordered? {
        Some(tensor) => Ok(tensor),
        None => bail!("the rows of {:?} cannot be the pairs of {heads} heads", tensor.dims()),
    }
}
