//! What lies at a path: named tensors, what the file says besides, and the config next to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::error::Result;
use crate::store::file::MappedFile;
use crate::store::layout::{Layout, TensorEntry};

/// An adapter's files before their format is known. Tensors are read when they are asked for.
pub(in crate::store) struct Source {
    path: PathBuf,
    container: Container,
    /// The text values of the file's header.
    metadata: BTreeMap<String, String>,
    /// `adapter_config.json` next to the tensors, if there is one.
    config: Option<Value>,
}

/// Where the tensors are.
enum Container {
    Safetensors {
        file: MappedFile,
        entries: BTreeMap<String, TensorEntry>,
    },
    /// Read whole: the tensors of a pickle.
    Memory(BTreeMap<String, Tensor>),
}

impl Source {
    /// Opens a file, or the one file of an adapter's folder.
    ///
    /// # Errors
    /// An error that names the file, and says what it is if it is recognisably something else.
    pub(in crate::store) fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let Layout { metadata, tensors } = Layout::of(&file);
        let entries = tensors.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
        let container = Container::Safetensors { file, entries };
        Ok(Self { path: path.to_owned(), container, metadata, config: None })
    }

    /// The file with the tensors.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The text values of the file's header.
    pub(super) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// `adapter_config.json` next to the tensors, if there is one.
    pub(super) fn config(&self) -> Option<&Value> {
        self.config.as_ref()
    }

    /// The names of the tensors as they are in the file, sorted.
    pub(super) fn names(&self) -> Vec<&str> {
        match &self.container {
            Container::Safetensors { entries, .. } => entries.keys().map(String::as_str).collect(),
            Container::Memory(tensors) => tensors.keys().map(String::as_str).collect(),
        }
    }

    /// The shape of the tensor called `name`.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        match &self.container {
            Container::Safetensors { entries, .. } => entries.get(name).map(|entry| entry.shape.as_slice()),
            Container::Memory(tensors) => tensors.get(name).map(Tensor::dims),
        }
    }

    /// Reads the tensor called `name` as it is stored; `None` if there is none.
    ///
    /// # Errors
    /// If its dtype is not one of candle's.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        match &self.container {
            Container::Safetensors { file, entries } => {
                let tensor = entries.get(name).map(|entry| entry.load(file, &Device::Cpu)).transpose();
                tensor.map_err(|error| crate::error::Error::from(error).in_file(&self.path))
            }
            Container::Memory(tensors) => Ok(tensors.get(name).cloned()),
        }
    }
}
