//! Where a safetensors file has what.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};

use super::file::MappedFile;
use crate::error::{Error, Result};

/// The tensors of a safetensors file in the order of their bytes, and what else its header says.
pub(super) struct Layout {
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) tensors: Vec<Place>,
}

/// One tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Its bytes, counted from the beginning of the file.
    bytes: Range<usize>,
}

/// The length of the length of the header.
const LENGTH: usize = size_of::<u64>();

impl Layout {
    pub(super) fn read(file: &MappedFile) -> Result<Self> {
        let wrong = |error: SafeTensorError| Error::from(error).in_file(file.path());
        let (header, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(wrong)?;
        let start = LENGTH + header;
        let place = |name: String| {
            let info = metadata.info(&name)?;
            let (from, to) = info.data_offsets;
            let bytes = start + from..start + to;
            Some(Place { dtype: info.dtype, shape: info.shape.clone(), bytes, name })
        };
        let tensors = metadata.offset_keys().into_iter().filter_map(place).collect();
        let metadata = metadata.metadata().iter().flatten();
        Ok(Self { metadata: metadata.map(|(key, value)| (key.clone(), value.clone())).collect(), tensors })
    }
}

impl Place {
    /// The tensor's bytes.
    pub(super) fn bytes<'f>(&self, file: &'f MappedFile) -> Result<&'f [u8]> {
        let bytes = file.bytes().get(self.bytes.clone());
        bytes.ok_or_else(|| Error::from(SafeTensorError::MetadataIncompleteBuffer).in_file(file.path()))
    }

    /// The number of the tensor's bytes.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Reads the tensor as it is stored.
    pub(super) fn load(&self, file: &MappedFile, device: &Device) -> candle_core::Result<Tensor> {
        TensorView::new(self.dtype, self.shape.clone(), self.bytes(file)?)?.load(device)
    }
}
