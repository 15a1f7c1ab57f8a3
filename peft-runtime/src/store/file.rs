//! Files: written whole or not at all, read through a memory map.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use memmap2::Mmap;
use safetensors::SafeTensors;
use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// A file that lies complete beside its place, and takes it when it is asked to.
pub(crate) struct PendingFile {
    temporary: NamedTempFile,
    path: PathBuf,
}

impl PendingFile {
    /// Writes a temporary file in the folder of `path` and flushes it to the disk.
    pub(crate) fn write(path: PathBuf, bytes: &[u8]) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let write = || {
            let mut builder = tempfile::Builder::new();
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
            let mut temporary = builder.prefix(".").suffix(".tmp").tempfile_in(folder)?;
            temporary.write_all(bytes)?;
            temporary.as_file().sync_all()?;
            Ok(temporary)
        };
        let temporary = write().map_err(Error::io("write", &path))?;
        Ok(Self { temporary, path })
    }

    /// Moves the file to its place, over what was there.
    pub(crate) fn persist(self) -> Result<()> {
        let Self { temporary, path } = self;
        temporary.persist(&path).map_err(|error| Error::io("replace", &path)(error.error))?;
        Ok(())
    }
}

/// Flushes a folder, so that renames in it survive a loss of power.
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

/// A safetensors file that is read where it lies.
pub(super) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        // SAFETY: the map is read-only, and every access goes through safetensors' bounds checks; a file that somebody
        // else truncates meanwhile is the risk that every reader of memory-mapped weights takes.
        #[expect(unsafe_code, reason = "mapping a file is the one way to read weights without a second copy")]
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Ok(Self { path: path.to_owned(), map })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All that is in the file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn parse(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.map).map_err(|error| Error::from(error).in_file(&self.path))
    }

    /// The names of the tensors.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        Ok(self.parse()?.names().into_iter().map(str::to_owned).collect())
    }

    /// Reads one tensor.
    pub(super) fn tensor(&self, name: &str, device: &Device) -> candle_core::Result<Tensor> {
        self.parse()?.tensor(name)?.load(device)
    }
}
