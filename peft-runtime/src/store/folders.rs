//! The adapters in a folder: in itself, and each in a folder of its name.

use std::path::Path;

use super::adapter_files::holds_adapter;
use crate::error::Error;
use crate::inject::name_fault;

/// The subfolders that hold adapters, by name; hidden ones have names that no adapter can have.
pub(super) fn named_adapters(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_adapter = |name: &String| name_fault(name).is_none() && holds_adapter(&folder.join(name));
    let mut names: Vec<String> = names.filter(is_adapter).collect();
    names.sort();
    names
}

/// Whether a folder is called like a checkpoint of transformers' trainer, `checkpoint-500`.
pub(super) fn is_checkpoint(name: &str) -> bool {
    let step = name.strip_prefix("checkpoint-");
    step.is_some_and(|step| !step.is_empty() && step.bytes().all(|byte| byte.is_ascii_digit()))
}

/// An error that says where the adapters are, if there is none in the folder itself and there are some inside.
pub(super) fn check_here(folder: &Path) -> Result<(), Error> {
    let others = if holds_adapter(folder) { Vec::new() } else { named_adapters(folder) };
    if others.is_empty() { Ok(()) } else { Err(Error::NotInFolder { others }.in_file(folder)) }
}
