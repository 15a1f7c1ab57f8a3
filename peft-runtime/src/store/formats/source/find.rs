//! Which files of a folder are the adapter.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::container::Kind;
use crate::error::{AdapterFileError, Error, Result};
use crate::store::file::open_file;
use crate::store::keys::{CONFIG_FILE, WEIGHTS_FILE};

/// The files of an adapter.
pub(super) struct Found {
    pub(super) weights: PathBuf,
    pub(super) config: Option<PathBuf>,
}

/// Names that programs give to the file of an adapter, those that count first before others.
const USUAL: [&str; 5] = [
    WEIGHTS_FILE,
    "adapter_model.bin",
    "adapters.safetensors",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
];

/// What lies next to an adapter in the folder of a trainer.
const COMPANIONS: [&str; 7] = [
    "optimizer.bin",
    "optimizer.pt",
    "optimizer.safetensors",
    "scaler.pt",
    "scheduler.bin",
    "scheduler.pt",
    "training_args.bin",
];

/// How the names of states of random numbers begin.
const RANDOM_STATES: [&str; 2] = ["random_states", "rng_state"];

/// The files of the adapter at a path: a folder, or a file of tensors.
pub(super) fn files(path: &Path) -> Result<Found> {
    let is_config = path.file_name().is_some_and(|name| name == CONFIG_FILE);
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    let config = Some(folder.join(CONFIG_FILE)).filter(|config| config.is_file());
    if !path.is_dir() && !is_config {
        return Ok(Found { weights: path.to_owned(), config });
    }
    Ok(Found { weights: weights_in(folder)?, config })
}

fn weights_in(folder: &Path) -> Result<PathBuf> {
    if let Some(usual) = USUAL.iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
        return Ok(usual);
    }
    let entries = std::fs::read_dir(folder).map_err(Error::io("open", folder))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| is_candidate(folder, name)).collect();
    names.sort();
    match names.as_slice() {
        [one] => Ok(folder.join(one)),
        _ => Err(Error::from(AdapterFileError::WhichFile { files: names }).in_file(folder)),
    }
}

fn is_candidate(folder: &Path, name: &str) -> bool {
    let is_companion =
        COMPANIONS.contains(&name) || RANDOM_STATES.iter().any(|start| name.starts_with(start));
    if is_companion || name.starts_with('.') {
        return false;
    }
    kind(&folder.join(name)).is_some()
}

/// The sort of a file, by its beginning.
pub(super) fn kind(path: &Path) -> Option<Kind> {
    let mut start = Vec::new();
    let read = open_file(path).and_then(|file: File| file.take(64).read_to_end(&mut start));
    read.ok().and_then(|_| Kind::of(&start).ok())
}
