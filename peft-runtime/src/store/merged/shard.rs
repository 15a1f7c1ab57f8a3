//! A file of merged weights: its header, and what goes where.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, TensorInfo};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::store::file::MappedFile;
use crate::store::layout::TensorEntry;

/// A file to write, laid out like one of the base model's.
pub(super) struct Shard<'c> {
    pub(super) name: String,
    pub(super) source: &'c MappedFile,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) tensors: Vec<Planned>,
}

/// A tensor of such a file.
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Where its bytes are, if nothing changes them.
    pub(super) kept: Option<TensorEntry>,
}

impl Planned {
    /// Its size in bytes.
    pub(super) fn size(&self) -> usize {
        (self.shape.iter().product::<usize>() * self.dtype.bitsize()).div_ceil(8)
    }
}

impl Shard<'_> {
    /// Creates the file and writes the header.
    pub(super) fn create(&self, path: &Path) -> Result<BufWriter<File>> {
        const MEBIBYTE: usize = 1 << 20;
        let header = self.header()?;
        let file = File::create_new(path).map_err(Error::io("create", path))?;
        let mut file = BufWriter::with_capacity(MEBIBYTE, file);
        let length = (header.len() as u64).to_le_bytes();
        file.write_all(&length).and_then(|()| file.write_all(&header)).map_err(Error::io("write", path))?;
        Ok(file)
    }

    /// The header with its entries in the order of the bytes, an order that safetensors' own function does not keep.
    fn header(&self) -> Result<Vec<u8>> {
        let mut entries = Vec::new();
        if !self.metadata.is_empty() {
            entries.push(format!("\"__metadata__\":{}", json(&self.metadata)?));
        }
        let mut offset = 0;
        for planned in &self.tensors {
            let data_offsets = (offset, offset + planned.size());
            let info = TensorInfo { dtype: planned.dtype, shape: planned.shape.clone(), data_offsets };
            entries.push(format!("{}:{}", json(&planned.name)?, json(&info)?));
            offset += planned.size();
        }
        let mut header = format!("{{{}}}", entries.join(",")).into_bytes();
        header.resize(header.len().next_multiple_of(size_of::<u64>()), b' ');
        Ok(header)
    }
}

fn json<T: Serialize + ?Sized>(value: &T) -> Result<String> {
    Ok(serde_json::to_string(value).map_err(SafeTensorError::from)?)
}
