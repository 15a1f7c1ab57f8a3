//! Folders called `step-N`, which are either complete or absent.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::store::sync_folder;

const PREFIX: &str = "step-";

/// What the name of a folder starts with while it is being written or removed.
const HIDDEN_PREFIX: &str = ".step-";

fn name(step: u64) -> String {
    format!("{PREFIX}{step}")
}

/// The step folders in `folder`, in ascending order; none if it does not exist.
pub(super) fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let step = |entry: &str| {
        let step = entry.strip_prefix(PREFIX)?.parse().ok()?;
        (name(step) == entry).then_some(step)
    };
    let mut found = Vec::new();
    for (entry, path) in entries(folder)? {
        if let Some(step) = step(&entry).filter(|_| path.is_dir()) {
            found.push((step, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Writes the folder of `step`. `fill` gets it under a temporary name; it is renamed once everything is on disk. An
/// existing folder of that step is replaced.
pub(super) fn write(folder: &Path, step: u64, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    remove_leftovers(folder)?;
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
    let temporary = builder.prefix(HIDDEN_PREFIX).suffix(".tmp").tempdir_in(folder);
    let temporary = temporary.map_err(Error::io("create a folder in", folder))?;
    fill(temporary.path())?;
    sync_folder(temporary.path())?;
    let place = folder.join(name(step));
    if place.exists() {
        remove(folder, step)?;
    }
    // The temporary folder is gone when its guard looks for it.
    std::fs::rename(temporary.path(), &place).map_err(Error::io("create", &place))?;
    sync_folder(folder)?;
    Ok(place)
}

/// Removes the folder of `step` atomically: it is either complete or absent.
pub(super) fn remove(folder: &Path, step: u64) -> Result<()> {
    let (place, aside) = (folder.join(name(step)), folder.join(format!(".{}.old", name(step))));
    std::fs::rename(&place, &aside).map_err(Error::io("remove", &place))?;
    std::fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))
}

/// Removes what a killed run left behind.
fn remove_leftovers(folder: &Path) -> Result<()> {
    for (entry, path) in entries(folder)? {
        if entry.starts_with(HIDDEN_PREFIX) && path.is_dir() {
            std::fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// The names and paths of what is in `folder`; nothing if it does not exist.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", folder)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", folder))?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{list, remove, write};
    use crate::error::Error;

    fn steps(folder: &Path) -> Vec<u64> {
        list(folder).unwrap().into_iter().map(|(step, _)| step).collect()
    }

    fn fill(text: &str) -> impl FnOnce(&Path) -> crate::Result<()> {
        let text = text.to_owned();
        move |folder| {
            std::fs::write(folder.join("a"), text).unwrap();
            Ok(())
        }
    }

    #[test]
    fn folders_come_by_number_and_other_entries_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let runs = folder.path().join("runs");
        assert!(steps(&runs).is_empty());
        for step in [9, 100, 10] {
            write(&runs, step, fill("x")).unwrap();
        }
        for other in ["step-", "step-007", "step-1x", "other"] {
            std::fs::create_dir(runs.join(other)).unwrap();
        }
        std::fs::write(runs.join("step-5"), "a file").unwrap();
        assert_eq!(steps(&runs), [9, 10, 100]);
        remove(&runs, 10).unwrap();
        assert_eq!(steps(&runs), [9, 100]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_folder_and_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), 3, fill("first")).unwrap();
        let failing = |path: &Path| {
            std::fs::write(path.join("a"), "half").unwrap();
            Err(Error::NoAdapters { operation: "fail" })
        };
        assert!(write(folder.path(), 3, failing).is_err());
        let text = || std::fs::read_to_string(folder.path().join("step-3/a")).unwrap();
        assert_eq!((text().as_str(), std::fs::read_dir(folder.path()).unwrap().count()), ("first", 1));
        write(folder.path(), 3, fill("second")).unwrap();
        assert_eq!((text().as_str(), std::fs::read_dir(folder.path()).unwrap().count()), ("second", 1));
    }

    #[test]
    fn what_a_killed_run_left_is_removed_by_the_next_write() {
        let folder = tempfile::tempdir().unwrap();
        for left in [".step-Xyz.tmp", ".step-4.old"] {
            std::fs::create_dir(folder.path().join(left)).unwrap();
        }
        write(folder.path(), 5, fill("x")).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
