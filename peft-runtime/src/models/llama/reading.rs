//! Llama models out of files.

use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device};

use super::gguf::GgufFile;
use super::{LlamaConfig, LlamaModel};
use crate::error::{Error, Result};
use crate::models::folder;
use crate::store::ModelWeights;

impl LlamaModel {
    /// Reads `config.json` and the safetensors weights, in one file or several, of a HuggingFace folder.
    ///
    /// # Errors
    /// An error that names the file if one cannot be read or does not fit.
    pub fn from_folder(folder: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<Self> {
        let folder = folder.as_ref();
        let config: LlamaConfig = folder::read_config(folder)?;
        let vb = ModelWeights::open(folder)?.var_builder(dtype, device);
        Self::new(&config, vb).map_err(|error| Error::from(error).in_file(folder))
    }

    /// Reads a HuggingFace folder and quantizes the weights of linear layers, one after the other.
    ///
    /// The token embedding and the norms are dense, in single precision; so is the layer that writes the logits where it has
    /// the embedding's weight.
    ///
    /// # Errors
    /// As [`from_folder`](Self::from_folder), and if a layer's number of inputs is not a multiple of the type's block size.
    pub fn from_folder_quantized(
        folder: impl AsRef<Path>,
        dtype: GgmlDType,
        device: &Device,
    ) -> Result<Self> {
        Self::from_folder_quantized_in(folder, dtype, DType::F32, device)
    }

    /// The same with everything that is dense in `dtype`, in which the model computes.
    ///
    /// # Errors
    /// As [`from_folder_quantized`](Self::from_folder_quantized).
    pub fn from_folder_quantized_in(
        folder: impl AsRef<Path>,
        quantized: GgmlDType,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let folder = folder.as_ref();
        let config: LlamaConfig = folder::read_config(folder)?;
        let vb = ModelWeights::open(folder)?.var_builder(dtype, device);
        Self::new_quantized(&config, vb, quantized).map_err(|error| Error::from(error).in_file(folder))
    }

    /// Reads a GGUF file and makes all weights dense, in single precision.
    ///
    /// # Errors
    /// An error that names the file if it cannot be read or holds another kind of model.
    pub fn from_gguf(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::from_gguf_in(path, DType::F32, device)
    }

    /// The same with all weights in `dtype`, in which the model computes.
    ///
    /// # Errors
    /// As [`from_gguf`](Self::from_gguf).
    pub fn from_gguf_in(path: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<Self> {
        Self::open_gguf(path.as_ref(), dtype, device, false)
    }

    /// Reads a GGUF file and keeps the weights of linear layers as they are in it.
    ///
    /// The token embedding and the norms are dense, in single precision; so is the layer that writes the logits where it has
    /// the embedding's weight.
    ///
    /// # Errors
    /// As [`from_gguf`](Self::from_gguf).
    pub fn from_gguf_quantized(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::from_gguf_quantized_in(path, DType::F32, device)
    }

    /// The same with everything that is dense in `dtype`, in which the model computes.
    ///
    /// # Errors
    /// As [`from_gguf`](Self::from_gguf).
    pub fn from_gguf_quantized_in(path: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<Self> {
        Self::open_gguf(path.as_ref(), dtype, device, true)
    }

    fn open_gguf(path: &Path, dtype: DType, device: &Device, keep_quantized: bool) -> Result<Self> {
        let mut file = GgufFile::open(path, dtype, device, keep_quantized)?;
        let config = file.config.clone();
        Self::build(config, &mut file).map_err(|error| Error::from(error).in_file(path))
    }
}
