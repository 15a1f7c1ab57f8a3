//! What lies at a path: named tensors, what the file says besides, and the config next to it.

mod container;
mod find;
mod gguf;
mod pickle;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::error::{AdapterFileError, Error, Result};
use crate::store::file::{MappedBytes, MappedFile, read_text};
use crate::store::layout::{Layout, TensorEntry};

use container::Kind;
use find::Found;
use pickle::StridedTensor;

/// An adapter's files before their format is known. Tensors are read when they are asked for.
pub(in crate::store) struct Source {
    path: PathBuf,
    kind: Kind,
    container: Container,
    /// The text values of the file's header.
    metadata: BTreeMap<String, String>,
    /// Where `adapter_config.json` next to the tensors is, and what it says, if there is one.
    config: Option<(PathBuf, Value)>,
}

/// Where the tensors are.
enum Container {
    Safetensors {
        file: MappedFile,
        entries: BTreeMap<String, TensorEntry>,
    },
    Pickle {
        file: MappedBytes,
        tensors: BTreeMap<String, StridedTensor>,
    },
    /// Read whole: the tensors of a GGUF file.
    Memory(BTreeMap<String, Tensor>),
}

impl Source {
    /// Opens a file, or the one file of an adapter's folder.
    ///
    /// # Errors
    /// An error that names the file, and says what it is if it is recognisably something else.
    pub(in crate::store) fn open(path: &Path) -> Result<Self> {
        let Found { weights, config } = find::files(path)?;
        let config = config.map(|path| Ok::<_, Error>((path.clone(), read_config(&path)?))).transpose()?;
        let mapped = MappedBytes::open(&weights)?;
        let kind = Kind::of(mapped.bytes()).map_err(|error| error.in_file(&weights))?;
        let (container, metadata) = match kind {
            Kind::Safetensors => safetensors(mapped)?,
            Kind::Gguf => {
                let (tensors, metadata) =
                    gguf::read(mapped.bytes()).map_err(|error| error.in_file(&weights))?;
                (Container::Memory(tensors), metadata)
            }
            Kind::Zip => pickled(pickle::read_zip(mapped.bytes()), mapped)?,
            Kind::Pickle => pickled(pickle::read_legacy(mapped.bytes()), mapped)?,
        };
        Ok(Self { path: weights, kind, container, metadata, config })
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
        self.config.as_ref().map(|(_, config)| config)
    }

    /// Where `adapter_config.json` next to the tensors is, if there is one.
    pub(super) fn config_path(&self) -> Option<&Path> {
        self.config.as_ref().map(|(path, _)| path.as_path())
    }

    /// Whether the tensors can be read later, each when it is asked for.
    pub(super) fn is_mapped(&self) -> bool {
        matches!(self.container, Container::Safetensors { .. })
    }

    /// Whether it is a GGUF file.
    pub(super) fn is_gguf(&self) -> bool {
        self.kind == Kind::Gguf
    }

    /// The names of the tensors as they are in the file, sorted.
    pub(super) fn names(&self) -> Vec<&str> {
        match &self.container {
            Container::Safetensors { entries, .. } => entries.keys().map(String::as_str).collect(),
            Container::Pickle { tensors, .. } => tensors.keys().map(String::as_str).collect(),
            Container::Memory(tensors) => tensors.keys().map(String::as_str).collect(),
        }
    }

    /// The shape of the tensor called `name`.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        match &self.container {
            Container::Safetensors { entries, .. } => entries.get(name).map(|entry| entry.shape.as_slice()),
            Container::Pickle { tensors, .. } => tensors.get(name).map(|tensor| tensor.shape.as_slice()),
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
                tensor.map_err(|error| Error::from(error).in_file(&self.path))
            }
            Container::Pickle { file, tensors } => {
                let tensor = tensors.get(name).map(|tensor| tensor.read(file.bytes())).transpose();
                tensor.map_err(|error| error.in_file(&self.path))
            }
            Container::Memory(tensors) => Ok(tensors.get(name).cloned()),
        }
    }

    /// Reads all tensors as they are stored.
    ///
    /// # Errors
    /// If a dtype is not one of candle's.
    pub(super) fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let read = |name: &str| Ok(self.tensor(name)?.map(|tensor| (name.to_owned(), tensor)));
        self.names().into_iter().filter_map(|name| read(name).transpose()).collect()
    }
}

/// Whether nothing at `path` could be an adapter.
pub(in crate::store) fn is_bare(path: &Path) -> bool {
    match find::files(path) {
        Err(Error::InFile { source, .. }) => {
            matches!(*source, Error::AdapterFile(AdapterFileError::WhichFile { files }) if files.is_empty())
        }
        found => found.is_err(),
    }
}

/// Whether the file at `path` has tensors, but not as safetensors.
pub(super) fn is_another_container(path: &Path) -> bool {
    find::kind(path).is_some_and(|kind| kind != Kind::Safetensors)
}

/// The config of an adapter, whatever its format.
pub(super) fn read_config(path: &Path) -> Result<Value> {
    serde_json::from_str(&read_text(path)?).map_err(|error| Error::from(error).in_file(path))
}

fn safetensors(mapped: MappedBytes) -> Result<(Container, BTreeMap<String, String>)> {
    let file = MappedFile::of_bytes(mapped)?;
    let Layout { metadata, tensors } = Layout::of(&file);
    let entries = tensors.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
    Ok((Container::Safetensors { file, entries }, metadata))
}

fn pickled(
    tensors: Result<BTreeMap<String, StridedTensor>>,
    file: MappedBytes,
) -> Result<(Container, BTreeMap<String, String>)> {
    let tensors = tensors.map_err(|error| error.in_file(file.path()))?;
    Ok((Container::Pickle { file, tensors }, BTreeMap::new()))
}
