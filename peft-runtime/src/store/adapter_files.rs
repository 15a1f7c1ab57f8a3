//! The two files of an adapter, which change together: a reader sees both old files or both new ones, whatever
//! happens to the writer.
//!
//! Two renames are not atomic. So a writer puts both files into a hidden folder, gives the folder its final name in a
//! single step, and only then moves the files into place:
//!
//! ```text
//! .adapter-x7Fq2c.tmp/              being written, and read by nobody
//! .adapter.new/                     complete and on disk: from here on the adapter is the new one
//!     adapter_model.safetensors
//!     adapter_config.json
//! ```
//!
//! A file in `.adapter.new` takes precedence over the one next to it. If a writer was killed before it moved a file,
//! readers find the file there, and the next writer moves it. When a save is done, the folder holds the files that
//! PEFT would write and nothing else.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::file::{TEMPORARY_PREFIX, TEMPORARY_SUFFIX, open_file, sync_folder};
use super::keys::{CONFIG_FILE, WEIGHTS_FILE};
use crate::error::{Error, Result};

/// The folder that holds the files of a complete save.
const COMPLETE: &str = ".adapter.new";
/// How many times a reader tries while writers keep replacing the files.
const ATTEMPTS: usize = 1000;

/// Keeps other writers out of `folder` for as long as the returned value lives; a lock ends with its process. Readers
/// need no lock. `None` where the system cannot lock folders.
pub(super) fn lock(folder: &Path) -> Option<File> {
    if !cfg!(unix) {
        return None;
    }
    let folder = File::open(folder).ok()?;
    folder.lock().ok()?;
    Some(folder)
}

/// Removes what killed writers left incomplete. Only the holder of the lock may do this.
pub(super) fn sweep(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(TEMPORARY_PREFIX) && name.ends_with(TEMPORARY_SUFFIX) {
            // A leftover that cannot be removed stays, and does no harm.
            let _ = remove(&entry.path());
        }
    }
}

/// Removes a file, a folder with everything in it, or a link, but not what the link points to.
fn remove(path: &Path) -> std::io::Result<()> {
    if is_folder(path) { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

/// Whether there is a folder at `path`, not a link to one.
fn is_folder(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|facts| facts.is_dir())
}

/// Replaces the weights and the config in `folder` with these.
pub(super) fn write(folder: &Path, weights: &[u8], config: &[u8]) -> Result<()> {
    finish(folder)?;
    commit(folder, &stage(folder, weights, config)?)?;
    finish(folder)
}

/// Writes both files to a hidden folder and flushes it to disk.
fn stage(folder: &Path, weights: &[u8], config: &[u8]) -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
    let staged = builder.prefix(TEMPORARY_PREFIX).suffix(TEMPORARY_SUFFIX).tempdir_in(folder);
    let staged = staged.map_err(Error::io("create a folder in", folder))?;
    for (name, bytes) in [(WEIGHTS_FILE, weights), (CONFIG_FILE, config)] {
        let write = || {
            let mut file = File::create_new(staged.path().join(name))?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(Error::io("write", folder.join(name)))?;
    }
    sync_folder(staged.path())?;
    Ok(staged)
}

/// The one step that makes the adapter the new one. When its guard tries to delete the staged folder, it no longer
/// exists.
fn commit(folder: &Path, staged: &TempDir) -> Result<()> {
    let complete = folder.join(COMPLETE);
    std::fs::rename(staged.path(), &complete).map_err(Error::io("create", &complete))?;
    sync_folder(folder)
}

/// Moves the files of a complete save into place. Two processes may do this at the same time.
fn finish(folder: &Path) -> Result<()> {
    let complete = folder.join(COMPLETE);
    if !is_folder(&complete) {
        // A link or a file is not one of ours.
        return unless_absent(std::fs::remove_file(&complete)).map_err(Error::io("remove", &complete));
    }
    for name in [WEIGHTS_FILE, CONFIG_FILE] {
        let place = folder.join(name);
        let moved = std::fs::rename(complete.join(name), &place);
        unless_absent(moved).map_err(Error::io("replace", &place))?;
    }
    sync_folder(folder)?;
    match std::fs::remove_dir(&complete) {
        // Another process was faster, or has already completed the next save.
        Err(_) if !complete.exists() || holds_files(&complete) => Ok(()),
        Err(_) => remove(&complete).map_err(Error::io("remove", &complete)),
        Ok(()) => Ok(()),
    }
}

/// The same result, except that a missing file is not an error.
fn unless_absent(done: std::io::Result<()>) -> std::io::Result<()> {
    done.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn holds_files(complete: &Path) -> bool {
    [WEIGHTS_FILE, CONFIG_FILE].iter().any(|name| complete.join(name).exists())
}

/// Where the file called `name` may be, in order of precedence.
fn places(folder: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    let complete = Some(folder.join(COMPLETE)).filter(|complete| is_folder(complete));
    complete.into_iter().chain([folder.to_owned()]).map(move |place| place.join(name))
}

/// Whether there is an adapter in `folder` itself.
pub(super) fn holds_adapter(folder: &Path) -> bool {
    places(folder, CONFIG_FILE).any(|path| path.is_file())
}

/// Whether there is a file of weights with PEFT's name in `folder` itself.
pub(super) fn holds_weights(folder: &Path) -> bool {
    places(folder, WEIGHTS_FILE).any(|path| path.is_file())
}

/// The files of one save.
pub(super) struct AdapterFiles {
    pub(super) config: File,
    /// An error is kept here so that a faulty config is reported before missing weights.
    pub(super) weights: Result<File>,
}

/// Opens the files of one save, even while a writer replaces them.
pub(super) fn open(folder: &Path) -> Result<AdapterFiles> {
    let mut attempts = 0;
    loop {
        let files =
            AdapterFiles { config: open_one(folder, CONFIG_FILE)?, weights: open_one(folder, WEIGHTS_FILE) };
        attempts += 1;
        // The same config was there before and after the weights were opened, so both are from one save.
        let unchanged = open_one(folder, CONFIG_FILE).is_ok_and(|config| is_same(&files.config, &config));
        if unchanged || attempts == ATTEMPTS {
            return Ok(files);
        }
    }
}

fn open_one(folder: &Path, name: &str) -> Result<File> {
    let mut opened = Err(ErrorKind::NotFound.into());
    for path in places(folder, name) {
        opened = open_file(&path);
        if !matches!(&opened, Err(error) if error.kind() == ErrorKind::NotFound) {
            break;
        }
    }
    opened.map_err(Error::io("open", folder.join(name)))
}

/// Whether two handles refer to the same file.
fn is_same(a: &File, b: &File) -> bool {
    let (Ok(a), Ok(b)) = (a.metadata(), b.metadata()) else { return true };
    #[cfg(unix)]
    let same = {
        use std::os::unix::fs::MetadataExt;
        (a.dev(), a.ino()) == (b.dev(), b.ino())
    };
    #[cfg(not(unix))]
    let same =
        (a.len(), a.modified().ok(), a.created().ok()) == (b.len(), b.modified().ok(), b.created().ok());
    same
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{COMPLETE, commit, finish, holds_adapter, open, stage, sweep, write};
    use crate::store::file::text_of;
    use crate::store::keys::{CONFIG_FILE, WEIGHTS_FILE};

    /// Config and weights as a reader sees them.
    fn seen(folder: &Path) -> (String, String) {
        let files = open(folder).unwrap();
        (text_of(&files.config).unwrap(), text_of(&files.weights.unwrap()).unwrap())
    }

    fn pair(text: &str) -> (String, String) {
        (text.to_owned(), text.to_owned())
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_writer_that_stops_at_any_step_leaves_the_old_files_or_the_new_ones() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write(folder, b"old", b"old").unwrap();
        assert_eq!(names(folder), [CONFIG_FILE, WEIGHTS_FILE]);

        let staged = stage(folder, b"new", b"new").unwrap();
        assert_eq!(seen(folder), pair("old"));
        commit(folder, &staged).unwrap();
        assert_eq!(seen(folder), pair("new"));
        let complete = folder.join(COMPLETE);
        std::fs::rename(complete.join(WEIGHTS_FILE), folder.join(WEIGHTS_FILE)).unwrap();
        assert_eq!(seen(folder), pair("new"));
        std::fs::rename(complete.join(CONFIG_FILE), folder.join(CONFIG_FILE)).unwrap();
        assert_eq!(seen(folder), pair("new"));
        finish(folder).unwrap();
        assert_eq!(
            (seen(folder), names(folder)),
            (pair("new"), vec![CONFIG_FILE.into(), WEIGHTS_FILE.into()])
        );
    }

    #[test]
    fn the_next_writer_completes_what_the_one_before_began() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let staged = stage(folder, b"first", b"first").unwrap();
        assert!(!holds_adapter(folder));
        commit(folder, &staged).unwrap();
        assert!(holds_adapter(folder));
        std::fs::rename(folder.join(COMPLETE).join(WEIGHTS_FILE), folder.join(WEIGHTS_FILE)).unwrap();
        write(folder, b"second", b"second").unwrap();
        assert_eq!(seen(folder), pair("second"));
        assert_eq!(names(folder), [CONFIG_FILE, WEIGHTS_FILE]);
    }

    #[test]
    fn what_was_never_completed_is_swept_away_and_strangers_stay() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        std::fs::create_dir(folder.join(".adapter-1.tmp")).unwrap();
        std::fs::write(folder.join(".adapter-1.tmp").join(CONFIG_FILE), "half").unwrap();
        std::fs::write(folder.join(".adapter-2.tmp"), "half").unwrap();
        std::fs::write(folder.join(".other.tmp"), "mine").unwrap();
        sweep(folder);
        assert_eq!(names(folder), [".other.tmp"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_place_of_the_complete_folder_leads_nowhere() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in [CONFIG_FILE, WEIGHTS_FILE] {
            std::fs::write(outside.path().join(name), "outside").unwrap();
        }
        std::os::unix::fs::symlink(outside.path(), folder.path().join(COMPLETE)).unwrap();
        assert!(!holds_adapter(folder.path()));
        write(folder.path(), b"new", b"new").unwrap();
        assert_eq!(seen(folder.path()), pair("new"));
        assert_eq!(names(outside.path()), [CONFIG_FILE, WEIGHTS_FILE]);
        assert_eq!(names(folder.path()), [CONFIG_FILE, WEIGHTS_FILE]);
    }
}
