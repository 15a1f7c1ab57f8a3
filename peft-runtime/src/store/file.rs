//! Files: written whole or not at all, read through a memory map.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use memmap2::Mmap;
use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, TensorInfo, TensorView};
use tempfile::NamedTempFile;

use super::{header, other_file};
use crate::error::{Error, Result};

/// The prefix and suffix in the names of files and folders that are not yet complete.
pub(super) const TEMPORARY_PREFIX: &str = ".adapter-";
pub(super) const TEMPORARY_SUFFIX: &str = ".tmp";

/// A complete file next to its destination, which it replaces when asked to.
pub(crate) struct PendingFile {
    temporary: NamedTempFile,
    path: PathBuf,
}

impl PendingFile {
    /// Writes a temporary file in the folder of `path` and flushes it to disk.
    pub(crate) fn write(path: PathBuf, bytes: &[u8]) -> Result<Self> {
        let place = path.clone();
        Self::stream(path, &mut |file| file.write_all(bytes).map_err(Error::io("write", &place)))
    }

    /// The same with bytes that come piece by piece.
    pub(crate) fn stream(path: PathBuf, write: &mut dyn FnMut(&mut File) -> Result<()>) -> Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
        builder.prefix(TEMPORARY_PREFIX).suffix(TEMPORARY_SUFFIX);
        let mut temporary = builder.tempfile_in(folder).map_err(Error::io("write", &path))?;
        write(temporary.as_file_mut())?;
        temporary.as_file().sync_all().map_err(Error::io("write", &path))?;
        Ok(Self { temporary, path })
    }

    /// Moves the file into place, over what was there.
    pub(crate) fn persist(self) -> Result<()> {
        let Self { temporary, path } = self;
        temporary.persist(&path).map_err(|error| Error::io("replace", &path)(error.error))?;
        Ok(())
    }
}

/// Flushes a folder, so that renames in it survive a power loss.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("flush", folder))?;
    Ok(())
}

/// The bytes of a safetensors file with PEFT's metadata.
pub(crate) fn to_bytes(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    let metadata = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    let contiguous: Vec<(&String, Tensor)> =
        tensors.iter().map(|(key, tensor)| Ok((key, tensor.contiguous()?))).collect::<Result<_>>()?;
    Ok(safetensors::serialize(contiguous, Some(metadata))?)
}

/// Opens a regular file: not a folder, and not a device or pipe that never ends.
pub(super) fn open_file(path: &Path) -> std::io::Result<File> {
    if std::fs::metadata(path)?.is_file() {
        File::open(path)
    } else {
        Err(std::io::Error::new(ErrorKind::InvalidInput, "it is not a file"))
    }
}

/// The most bytes that a settings file may have.
const LONGEST_TEXT: u64 = 64 << 20;

/// The text of a settings file, such as a model's `config.json`.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, is not a file, is not text, or is larger than 64 MiB.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    open_file(path).and_then(|file| text_of(&file)).map_err(Error::io("read", path))
}

/// The text of an open settings file.
pub(super) fn text_of(file: &File) -> std::io::Result<String> {
    let mut text = String::new();
    file.take(LONGEST_TEXT + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST_TEXT {
        let reason = format!("it has more than {LONGEST_TEXT} bytes");
        return Err(std::io::Error::new(ErrorKind::InvalidData, reason));
    }
    Ok(text)
}

/// A file that is read where it lies.
pub(super) struct MappedBytes {
    path: PathBuf,
    map: Mmap,
}

impl MappedBytes {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Self::of(&open_file(path).map_err(Error::io("open", path))?, path)
    }

    /// The file that is open and was found at `path`.
    pub(super) fn of(file: &File, path: &Path) -> Result<Self> {
        // SAFETY: the map is read-only, and every access goes through bounds checks; a file that somebody else truncates
        // meanwhile is the risk that every reader of memory-mapped weights takes.
        #[expect(unsafe_code, reason = "mapping a file is the one way to read weights without a second copy")]
        let map = unsafe { Mmap::map(file) }.map_err(Error::io("map", path))?;
        Ok(Self { path: path.to_owned(), map })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All that is in the file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// A safetensors file that is read where it lies.
pub(super) struct MappedFile {
    mapped: MappedBytes,
    /// Where the data begins.
    start: usize,
    header: Metadata,
}

impl MappedFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Self::of_bytes(MappedBytes::open(path)?)
    }

    /// Maps an open file that was found at `path`.
    pub(super) fn of(file: &File, path: &Path) -> Result<Self> {
        Self::of_bytes(MappedBytes::of(file, path)?)
    }

    /// The file that is mapped already.
    pub(super) fn of_bytes(mapped: MappedBytes) -> Result<Self> {
        let read = header::read(mapped.bytes());
        let (start, header) = read.map_err(|error| {
            other_file::recognised(mapped.bytes()).unwrap_or_else(|| error.into()).in_file(mapped.path())
        })?;
        Ok(Self { mapped, start, header })
    }

    pub(super) fn path(&self) -> &Path {
        self.mapped.path()
    }

    /// The contents of the file.
    pub(super) fn bytes(&self) -> &[u8] {
        self.mapped.bytes()
    }

    /// Where the data begins.
    pub(super) fn start(&self) -> usize {
        self.start
    }

    /// What the header says.
    pub(super) fn header(&self) -> &Metadata {
        &self.header
    }

    /// The names of the tensors, in file order.
    pub(super) fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    fn view(&self, info: &TensorInfo) -> Result<TensorView<'_>, SafeTensorError> {
        let (from, to) = info.data_offsets;
        let bytes = self.mapped.bytes().get(self.start + from..self.start + to);
        let bytes = bytes.ok_or(SafeTensorError::MetadataIncompleteBuffer)?;
        TensorView::new(info.dtype, info.shape.clone(), bytes)
    }

    /// Reads one tensor.
    pub(super) fn tensor(&self, name: &str, device: &Device) -> candle_core::Result<Tensor> {
        let info = self.header.info(name);
        let info = info.ok_or_else(|| SafeTensorError::TensorNotFound(name.to_owned()))?;
        self.view(info)?.load(device)
    }
}
