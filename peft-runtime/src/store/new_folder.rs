//! A folder that appears only when it is complete.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::file::sync_folder;
use crate::error::{Error, Result};

/// A folder under a temporary name, which is moved into place on request and otherwise deleted.
pub(super) struct NewFolder {
    temporary: TempDir,
    target: PathBuf,
}

impl NewFolder {
    /// An empty folder next to `target`, which must not exist or must be empty.
    pub(super) fn next_to(target: &Path) -> Result<Self> {
        if target.exists() {
            let mut entries = std::fs::read_dir(target).map_err(Error::io("read", target))?;
            if entries.next().is_some() {
                let full = std::io::Error::new(std::io::ErrorKind::AlreadyExists, "there are files in it");
                return Err(Error::io("write into", target)(full));
            }
        }
        let parent = parent(target);
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
        let temporary =
            builder.prefix(".").suffix(".tmp").tempdir_in(parent).map_err(Error::io("write into", parent))?;
        Ok(Self { temporary, target: target.to_owned() })
    }

    /// The temporary path of the folder.
    pub(super) fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Moves the folder into place.
    pub(super) fn appear(self) -> Result<()> {
        let Self { temporary, target } = self;
        sync_folder(temporary.path())?;
        if target.exists() {
            std::fs::remove_dir(&target).map_err(Error::io("replace", &target))?;
        }
        std::fs::rename(temporary.path(), &target).map_err(Error::io("replace", &target))?;
        sync_folder(parent(&target))
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
