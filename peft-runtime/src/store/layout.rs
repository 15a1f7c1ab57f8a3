//! What a safetensors file holds, and where.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, TensorView};

use super::file::MappedFile;
use crate::error::{Error, Result};

/// The tensors of a safetensors file in the order of their bytes, and the rest of its header.
pub(super) struct Layout {
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) tensors: Vec<TensorEntry>,
}

/// One tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorEntry {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Its bytes, counted from the beginning of the file.
    bytes: Range<usize>,
}

impl Layout {
    /// The layout in the file's header, which was checked when the file was opened.
    pub(super) fn of(file: &MappedFile) -> Self {
        let (start, header) = (file.start(), file.header());
        let entry = |name: String| {
            let info = header.info(&name)?;
            let (from, to) = info.data_offsets;
            let bytes = start + from..start + to;
            Some(TensorEntry { dtype: info.dtype, shape: info.shape.clone(), bytes, name })
        };
        let tensors = header.offset_keys().into_iter().filter_map(entry).collect();
        let metadata = header.metadata().iter().flatten();
        Self { metadata: metadata.map(|(key, value)| (key.clone(), value.clone())).collect(), tensors }
    }
}

impl TensorEntry {
    /// The tensor's bytes.
    pub(super) fn bytes<'f>(&self, file: &'f MappedFile) -> Result<&'f [u8]> {
        let bytes = file.bytes().get(self.bytes.clone());
        bytes.ok_or_else(|| Error::from(SafeTensorError::MetadataIncompleteBuffer).in_file(file.path()))
    }

    /// The tensor's size in bytes.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Reads the tensor as it is stored.
    pub(super) fn load(&self, file: &MappedFile, device: &Device) -> candle_core::Result<Tensor> {
        TensorView::new(self.dtype, self.shape.clone(), self.bytes(file)?)?.load(device)
    }

    /// The values of a tensor that is stored in f32.
    pub(super) fn floats(&self, file: &MappedFile) -> Result<Vec<f32>> {
        let (values, _) = self.bytes(file)?.as_chunks::<{ size_of::<f32>() }>();
        Ok(values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}
