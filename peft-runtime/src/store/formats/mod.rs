//! Adapter files of other programs, found by their content and read into what PEFT would have written.
//!
//! A container (safetensors, a pickle, GGUF) gives named tensors; a format says what the names mean. `FORMATS` is the registry:
//! a new format is a file with an [`AdapterFormat`], and a line there.

mod base;
mod base_modules;
mod fit;
mod format;
mod gguf;
mod image;
mod low_rank;
mod mlx;
mod source;

use std::path::Path;

use serde_json::Value;

use crate::error::{AdapterFileError, Error, Result};
use crate::method::PeftConfig;

use super::adapter_files::{holds_adapter, holds_weights};
use super::canonical::IsLayer;
use super::keys::{CONFIG_FILE, WEIGHTS_FILE};
use super::stored_contents::StoredContents;

pub(super) use base::Base;
use format::{AdapterFormat, Imported};
pub(super) use gguf::GgufNames;
pub(super) use image::{ExportedLayer, diffusers as diffusers_file, kohya as kohya_file};
use source::Source;
pub(super) use source::is_bare;

/// What the format of PEFT's own files is called.
pub(super) const PEFT: &str = "peft";

/// The formats, those with the more specific marks first.
static FORMATS: [&dyn AdapterFormat; 6] =
    [&gguf::Gguf, &mlx::Mlx, &image::LYCORIS, &image::XLABS, &image::KOHYA, &image::DIFFUSERS];

/// The names of all formats.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    std::iter::once(PEFT).chain(FORMATS.iter().map(|format| format.name()))
}

/// An adapter of any format.
pub(super) struct Opened {
    pub(super) format: &'static str,
    pub(super) config: PeftConfig,
    pub(super) contents: StoredContents,
    /// As in [`Imported`].
    pub(super) left_out: Vec<String>,
}

impl Opened {
    fn pefts_own((config, contents): (PeftConfig, StoredContents)) -> Self {
        Self { format: PEFT, config, contents, left_out: Vec::new() }
    }
}

/// Opens the adapter at `path`, a folder or a file, in whatever format it is. With a base model its modules get the names
/// that they have there.
///
/// # Errors
/// As [`AdapterFormat::read`], and if the file is of no known format.
pub(super) fn open(path: &Path, base: Option<&Base>) -> Result<Opened> {
    let opened =
        if is_pefts_own(path) { Opened::pefts_own(open_own(path, base)?) } else { foreign(path, base)? };
    let Some(base) = base else { return Ok(opened) };
    let (config, contents) = fit::to_base(opened.config, opened.contents, base)?;
    Ok(Opened { config, contents, ..opened })
}

/// Opens PEFT's own files, with the keys read for the base model.
fn open_own(path: &Path, base: Option<&Base>) -> Result<(PeftConfig, StoredContents)> {
    let Some(base) = base else { return StoredContents::open(path, None) };
    StoredContents::open(path, Some(&|path| base.is_layer(path)))
}

/// Whether there are files with the names that PEFT gives them, and a config of PEFT's; or nothing that could be anything
/// else, of which the reader of PEFT's files then says what is missing.
fn is_pefts_own(path: &Path) -> bool {
    let is_own_name = |name| [CONFIG_FILE, WEIGHTS_FILE].iter().any(|own| name == *own);
    let is_own_file = path.file_name().is_some_and(is_own_name) && !path.is_dir();
    if path.is_file() && !is_own_file {
        return false;
    }
    let folder = if is_own_file { path.parent().unwrap_or(Path::new("")) } else { path };
    let config = folder.join(CONFIG_FILE);
    if holds_weights(folder) {
        let is_foreign = source::read_config(&config).is_ok_and(|config| !has_peft_type(&config));
        return holds_adapter(folder)
            && !is_foreign
            && !source::is_another_container(&folder.join(WEIGHTS_FILE));
    }
    !folder.is_dir() || is_bare(path)
}

fn has_peft_type(config: &Value) -> bool {
    config.get("peft_type").is_some_and(Value::is_string)
}

/// Opens what is not a folder with PEFT's files.
fn foreign(path: &Path, base: Option<&Base>) -> Result<Opened> {
    let source = Source::open(path)?;
    let of_file = |error: Error| match error {
        Error::InFile { .. } => error,
        other => other.in_file(source.path()),
    };
    if let Some(format) = FORMATS.iter().find(|format| format.recognises(&source)) {
        let Imported { config, tensors, left_out } = format.read(&source, base).map_err(of_file)?;
        let contents = StoredContents::of_file(source.path(), source.config_path(), &config, tensors, None)?;
        return Ok(Opened { format: format.name(), config, contents, left_out });
    }
    let Some((config, config_path)) = source.config().zip(source.config_path()) else {
        let first = source.names().first().map(|name| (*name).to_owned());
        let known = FORMATS.iter().map(|format| format.name().to_owned()).chain([PEFT.to_owned()]).collect();
        return Err(of_file(AdapterFileError::UnknownNames { first, known }.into()));
    };
    if source.is_mapped() {
        return open_own(source.path(), base).map(Opened::pefts_own);
    }
    let config = PeftConfig::from_json(&config.to_string()).map_err(|error| error.in_file(config_path))?;
    let is_layer = |path: &str| base.is_some_and(|base| base.is_layer(path));
    let is_layer = base.is_some().then_some(&is_layer as IsLayer<'_>);
    let contents =
        StoredContents::of_file(source.path(), Some(config_path), &config, source.tensors()?, is_layer)?;
    Ok(Opened::pefts_own((config, contents)))
}
