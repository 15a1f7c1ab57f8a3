//! Files that are put together byte by byte, valid or not.

use std::collections::BTreeMap;

use candle_core::Tensor;
use peft_runtime::Result;
use peft_runtime::prelude::*;

use crate::victim::Variant;

/// The name of the config's file.
pub const CONFIG: &str = "adapter_config.json";
/// The name of the weights' file.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// The text of a valid config, and the bytes of its weights.
///
/// # Errors
/// If a tensor cannot be created.
pub fn sound_adapter() -> Result<(String, Vec<u8>)> {
    let model = Variant(0).model("default")?;
    let config = model.adapter_config("default")?.to_json(&[])?;
    Ok((config, safetensors_of(&model.adapter_state_dict("default")?)?))
}

/// The bytes of a file with these tensors.
///
/// # Errors
/// If a tensor cannot be written to a file.
pub fn safetensors_of(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    Ok(safetensors::serialize(tensors.iter(), None)?)
}

/// A safetensors file with this header, valid or not, and these data.
pub fn safetensors_with(header: &str, data: &[u8]) -> Vec<u8> {
    [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes(), data].concat()
}

/// The numbers of GGUF's value types.
pub mod kind {
    /// A four-byte integer.
    pub const U32: u32 = 4;
    /// A four-byte float.
    pub const F32: u32 = 6;
    /// A string.
    pub const STRING: u32 = 8;
    /// An array.
    pub const ARRAY: u32 = 9;
    /// An eight-byte integer.
    pub const U64: u32 = 10;
}

/// A string as GGUF files store it.
pub fn gguf_text(text: &str) -> Vec<u8> {
    [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes()].concat()
}

/// A tensor in a GGUF file.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    /// Its name.
    pub name: &'static str,
    /// Its shape, the dimension that moves fastest first.
    pub dims: Vec<u64>,
    /// The number of its type.
    pub dtype: u32,
    /// Where its data begin; `None` for the true offset.
    pub offset: Option<u64>,
}

/// A GGUF file, part by part.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// What it begins with.
    pub magic: [u8; 4],
    /// Its version.
    pub version: u32,
    /// The number of tensors that it states; `None` for the true one.
    pub tensor_count: Option<u64>,
    /// The number of entries that it states; `None` for the true one.
    pub entry_count: Option<u64>,
    /// The entries: key, type, value.
    pub entries: Vec<(&'static str, u32, Vec<u8>)>,
    /// The tensors, all zeros except the norms.
    pub tensors: Vec<GgufTensor>,
}

/// The alignment of the data.
const ALIGNMENT: usize = 32;

impl Gguf {
    /// A Llama of one block that can be loaded.
    pub fn sound() -> Self {
        let number = |value: u32| (kind::U32, value.to_le_bytes().to_vec());
        let entries = [
            ("general.architecture", (kind::STRING, gguf_text("llama"))),
            ("llama.embedding_length", number(4)),
            ("llama.feed_forward_length", number(4)),
            ("llama.block_count", number(1)),
            ("llama.context_length", number(16)),
            ("llama.attention.head_count", number(2)),
            ("llama.attention.head_count_kv", number(1)),
        ];
        let tensor = |name, dims: &[u64]| GgufTensor { name, dims: dims.to_vec(), dtype: 0, offset: None };
        let tensors = vec![
            tensor("token_embd.weight", &[4, 3]),
            tensor("output_norm.weight", &[4]),
            tensor("blk.0.attn_norm.weight", &[4]),
            tensor("blk.0.attn_q.weight", &[4, 4]),
            tensor("blk.0.attn_k.weight", &[4, 2]),
            tensor("blk.0.attn_v.weight", &[4, 2]),
            tensor("blk.0.attn_output.weight", &[4, 4]),
            tensor("blk.0.ffn_norm.weight", &[4]),
            tensor("blk.0.ffn_gate.weight", &[4, 4]),
            tensor("blk.0.ffn_up.weight", &[4, 4]),
            tensor("blk.0.ffn_down.weight", &[4, 4]),
        ];
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: entries.into_iter().map(|(key, (kind, value))| (key, kind, value)).collect(),
            tensors,
        }
    }

    /// The same file with a different value at `key`, or with one more entry.
    #[must_use]
    pub fn with(mut self, key: &'static str, kind: u32, value: &[u8]) -> Self {
        self.entries.retain(|(known, ..)| *known != key);
        self.entries.push((key, kind, value.to_vec()));
        self
    }

    /// The same file with a change to the tensor called `name`.
    #[must_use]
    pub fn with_tensor(mut self, name: &str, change: impl FnOnce(&mut GgufTensor)) -> Self {
        if let Some(tensor) = self.tensors.iter_mut().find(|tensor| tensor.name == name) {
            change(tensor);
        }
        self
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.entries {
            bytes.extend(gguf_text(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend_from_slice(value);
        }
        let mut data: Vec<u8> = Vec::new();
        for tensor in &self.tensors {
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
            bytes.extend(gguf_text(tensor.name));
            bytes.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
            bytes.extend(tensor.dtype.to_le_bytes());
            bytes.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            // Four bytes per value, if the shape is one that a file can have.
            let count = tensor.dims.iter().fold(1u64, |count, size| count.saturating_mul(*size)).min(64);
            let value: f32 = if tensor.name.contains("norm") { 1.0 } else { 0.25 };
            (0..count).for_each(|_| data.extend(value.to_le_bytes()));
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend(data);
        bytes
    }
}
