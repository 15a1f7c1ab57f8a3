//! Adapter files of other programs, found by their content and read into what PEFT would have written.
//!
//! A container (safetensors, a pickle, GGUF) gives named tensors; a format says what the names mean. `FORMATS` is the registry:
//! a new format is one file with an [`AdapterFormat`], and one line there.

mod base;
mod source;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use crate::error::Result;
use crate::method::PeftConfig;

pub(super) use base::Base;
pub(super) use source::Source;

/// A way to write adapters that is not PEFT's.
pub(super) trait AdapterFormat: Sync {
    /// What reports and errors call it: `kohya`, `mlx`.
    fn name(&self) -> &'static str;

    /// Whether the source is in this format, by its content.
    fn recognises(&self, source: &Source) -> bool;

    /// Reads the adapter. `base` has the names, shapes and config of the model that it is for, if the caller has it.
    ///
    /// # Errors
    /// If the format needs the base model and there is none, if a key belongs to no module or to more than one, or if a tensor is
    /// not what the format has under its key.
    fn read(&self, source: &Source, base: Option<&Base>) -> Result<Imported>;
}

/// An adapter of another program as PEFT would have written it.
#[derive(Debug)]
pub(super) struct Imported {
    /// The config: what the file does not say has PEFT's defaults.
    pub(super) config: PeftConfig,
    /// The tensors under PEFT's keys without the prefix, `unet.down.0.to_q.lora_A.weight` under the base model's own names.
    pub(super) tensors: BTreeMap<String, Tensor>,
    /// The keys of parts that are for another model (a text encoder next to a UNet), which were left out.
    pub(super) left_out: Vec<String>,
}

/// The formats, those with the more specific marks first.
const FORMATS: &[&dyn AdapterFormat] = &[];

/// Reads the adapter at `path` if it is in a format of another program; `None` if it is PEFT's own or unknown.
///
/// # Errors
/// As [`AdapterFormat::read`].
pub(super) fn read(path: &Path, base: Option<&Base>) -> Result<Option<(&'static str, Imported)>> {
    if FORMATS.is_empty() {
        return Ok(None);
    }
    let source = Source::open(path)?;
    match FORMATS.iter().find(|format| format.recognises(&source)) {
        Some(format) => Ok(Some((format.name(), format.read(&source, base)?))),
        None => Ok(None),
    }
}
