//! The files that commands read and write.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use peft_runtime::{BaseWeights, ModelWeights, StoredAdapter};
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::failure::Failure;
use crate::terminal::warn;

/// The largest `config.json` that is read, in bytes.
const LONGEST_CONFIG: u64 = 16 << 20;

/// Opens a base model: one folder, or safetensors files.
///
/// # Errors
/// If a file cannot be read.
pub fn open_base(paths: &[PathBuf]) -> Result<ModelWeights, Failure> {
    Ok(match paths {
        [one] => ModelWeights::open(one)?,
        several => ModelWeights::open_files(several)?,
    })
}

/// Opens the weights of a base model, if one is given, for what adapters do not say by themselves.
///
/// # Errors
/// If a file cannot be read.
pub fn open_base_weights(paths: &[PathBuf]) -> Result<Option<BaseWeights>, Failure> {
    match paths {
        [] => Ok(None),
        paths => Ok(Some(BaseWeights::new(open_base(paths)?)?)),
    }
}

/// Opens an adapter in any format, with the names of its base model where that is given.
///
/// # Errors
/// If a file cannot be read, or the adapter is not for the base model.
pub fn open_adapter(path: &Path, base: Option<&BaseWeights>) -> Result<StoredAdapter, Failure> {
    Ok(match base {
        Some(base) => StoredAdapter::open_for(path, base)?,
        None => StoredAdapter::open(path)?,
    })
}

/// Warns of parts of an adapter's file that are for other models.
pub fn warn_of_left_out(adapter: &StoredAdapter) {
    if let Some(first) = adapter.left_out().first() {
        warn(&format!(
            "`{}` has {} tensors for other models than this one (`{first}` for example); they were left out",
            adapter.name(),
            adapter.left_out().len()
        ));
    }
}

/// Reads a base model's `config.json`.
///
/// # Errors
/// If the file cannot be read, is not JSON, or is too long.
pub fn read_model_config(path: &Path) -> Result<Value, Failure> {
    serde_json::from_str(&read_config(path)?).map_err(|error| {
        Failure::new(
            format!("cannot use `{}`: {error}", path.display()),
            "pass the base model's `config.json` as transformers writes it",
        )
    })
}

/// Reads the text of a config. A much longer file is a mistake, and is not read to its end.
///
/// # Errors
/// If the file cannot be read, is not text, or is too long.
pub fn read_config(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST_CONFIG + 1).read_to_string(&mut text))
        .map_err(|error| Failure::read(path, &error))?;
    if text.len() as u64 > LONGEST_CONFIG {
        return Err(Failure::read(path, &format!("it has more than {LONGEST_CONFIG} bytes")));
    }
    Ok(text)
}

/// Refuses to overwrite existing output, unless `force` is set.
///
/// # Errors
/// If the output exists and may not be replaced.
pub fn check_free(output: &Path, exists: bool, force: bool) -> Result<(), Failure> {
    if force || !exists {
        return Ok(());
    }
    Err(Failure::new(
        format!("`{}` already exists", output.display()),
        "choose another output, or replace it with `--force`",
    ))
}

/// A new file in the folder of `path`, which replaces `path` when it is persisted.
///
/// # Errors
/// If the folder cannot be written to.
pub fn new_file(path: &Path, suffix: &str) -> Result<NamedTempFile, Failure> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    let file = builder.prefix(".").suffix(suffix).tempfile_in(folder);
    file.map_err(|error| Failure::write(path, &error))
}
