//! A model as HuggingFace stores it: a folder with `config.json` and safetensors files.

use std::path::Path;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::store::{ModelWeights, read_text};

/// Reads the folder's `config.json`.
pub(super) fn read_config<C: DeserializeOwned>(folder: &Path) -> Result<C> {
    let path = folder.join("config.json");
    let text = read_text(&path)?;
    serde_json::from_str(&text).map_err(|error| Error::ModelConfig(error).in_file(path))
}

/// A builder over the folder's weights, below `prefix` if they have one.
pub(super) fn weights(
    folder: &Path,
    prefix: &str,
    dtype: DType,
    device: &Device,
) -> Result<VarBuilder<'static>> {
    let weights = ModelWeights::open(folder)?;
    let dotted = format!("{prefix}.");
    let has_prefix = weights.names().any(|name| name.starts_with(&dotted));
    let vb = weights.var_builder(dtype, device);
    Ok(if has_prefix { vb.pp(prefix) } else { vb })
}
