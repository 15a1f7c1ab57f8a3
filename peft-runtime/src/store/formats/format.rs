//! What a format is.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::base::Base;
use super::source::Source;
use crate::error::Result;
use crate::method::PeftConfig;

/// A way to write adapters that is not PEFT's.
pub(in crate::store) trait AdapterFormat: Sync {
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
pub(in crate::store) struct Imported {
    /// The config: what the file does not say has PEFT's defaults.
    pub(in crate::store) config: PeftConfig,
    /// The tensors under PEFT's keys without the prefix, `unet.down.0.to_q.lora_A.weight` under the base model's own names.
    pub(in crate::store) tensors: BTreeMap<String, Tensor>,
    /// The keys of parts that are for another model (a text encoder next to a UNet), which were left out.
    pub(in crate::store) left_out: Vec<String>,
}
