//! Writes llama.cpp's adapters.

use std::io::{Seek, Write};

use candle_core::Tensor;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};

use super::architecture::{EMBEDDING, HEAD, ModelConfig, architecture_names};
use super::reader::{ADAPTER_TYPE, ALPHA, ARCHITECTURE, TYPE, field, key};
use crate::error::{AdapterFileError, Result};
use crate::store::rotary_rows::in_pairs;

/// What the base model's config says about names and the order of rows.
pub(in crate::store) struct GgufNames(ModelConfig);

impl GgufNames {
    /// # Errors
    /// If the names of the model's type are not known.
    pub(in crate::store) fn of(config: &serde_json::Value) -> Result<Self> {
        ModelConfig::of(config).map(Self).map_err(|model_type| {
            field(
                "model_type",
                format!(
                    "is `{model_type}`; adapters in GGUF are written for {}, and llama.cpp's `convert_lora_to_gguf.py` \
                     knows others",
                    architecture_names()
                ),
            )
        })
    }

    /// Whether llama.cpp's tensor for the module at `path` is the embedding or the head.
    ///
    /// # Errors
    /// If llama.cpp has no tensor for it.
    pub(in crate::store) fn is_outside_of_blocks(&self, path: &str) -> Result<bool> {
        let (name, _) = self.0.name_of(path).ok_or_else(|| unknown(path))?;
        Ok([EMBEDDING, HEAD].contains(&name.as_str()))
    }

    /// The two tensors of a layer under llama.cpp's names: A `[rank, in]`, B `[out, rank]`.
    ///
    /// # Errors
    /// If llama.cpp has no adapters there, or rows do not divide into the model's heads.
    pub(in crate::store) fn tensors(
        &self,
        path: &str,
        a: &Tensor,
        b: &Tensor,
        dtype: GgmlDType,
    ) -> Result<[(String, QTensor); 2]> {
        let (name, heads) = self.0.name_of(path).ok_or_else(|| unknown(path))?;
        let b = match heads {
            Some(heads) => in_pairs(b, heads)?.ok_or_else(|| {
                let rows = b.dim(0).unwrap_or_default();
                key(path, format!("has {rows} outputs, which do not divide into pairs for {heads} heads"))
            })?,
            None => b.clone(),
        };
        // llama.cpp looks up rows of A for an embedding.
        let a = if name == EMBEDDING { a.t()? } else { a.clone() };
        // Copied, because quantizing reads the storage from its beginning.
        let stored = |tensor: &Tensor| QTensor::quantize(&tensor.contiguous()?.copy()?, dtype);
        Ok([(format!("{name}.weight.lora_a"), stored(&a)?), (format!("{name}.weight.lora_b"), stored(&b)?)])
    }

    /// Writes the file.
    ///
    /// # Errors
    /// candle's.
    pub(in crate::store) fn write<W: Write + Seek>(
        &self,
        file: &mut W,
        name: &str,
        alpha: f32,
        half: bool,
        tensors: &[(String, QTensor)],
    ) -> Result<()> {
        let metadata = [
            (ARCHITECTURE, Value::String(self.0.architecture.name.to_owned())),
            (TYPE, Value::String("adapter".to_owned())),
            ("general.name", Value::String(name.to_owned())),
            ("general.file_type", Value::U32(u32::from(half))),
            ("general.quantization_version", Value::U32(2)),
            (ADAPTER_TYPE, Value::String("lora".to_owned())),
            (ALPHA, Value::F32(alpha)),
        ];
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
        let named: Vec<(&str, &QTensor)> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        Ok(gguf_file::write(file, &metadata, &named)?)
    }
}

fn unknown(path: &str) -> crate::error::Error {
    let reason =
        "has no tensor in llama.cpp that an adapter can be on; merge the adapter into the base model instead";
    AdapterFileError::Key { key: path.to_owned(), reason: reason.to_owned() }.into()
}
