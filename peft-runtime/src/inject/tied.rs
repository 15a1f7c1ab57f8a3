//! What a layer has of another one, because both have one weight.

use candle_core::Tensor;

use super::plan::Plan;
use crate::adapter::{Adapter, StoredTensors};
use crate::error::{Error, Result};
use crate::layer::{Content, CopiedParameter, Layer};
use crate::path::ModulePath;

/// What `layer` gets of what another one has; `None` if the two need not share anything.
pub(super) fn tied_content(layer: &dyn Layer, owner: &Content, scaling: Option<f64>) -> Option<Content> {
    match owner {
        Content::Adapter(adapter) => {
            let tied = adapter.tied_to(layer.geometry())?;
            let scaled = scaling.and_then(|scaling| tied.with_scaling(scaling));
            Some(Content::Adapter(scaled.unwrap_or(tied)))
        }
        Content::Copy(copies) => {
            let weight = copies.iter().find(|copy| copy.name == layer.weight_name())?;
            Some(Content::Copy(vec![CopiedParameter { name: weight.name, var: weight.var.clone() }]))
        }
    }
}

/// Counts what a file has of it once more as used.
///
/// # Errors
/// If the file has other values there.
pub(super) fn check_tied(
    path: &ModulePath,
    tied: &Content,
    plan: &Plan,
    stored: &mut StoredTensors<'_>,
) -> Result<()> {
    let values: Vec<(String, Tensor)> = match tied {
        Content::Adapter(adapter) => stored_values(path, adapter.as_ref())?,
        Content::Copy(copies) => {
            let copy = |copy: &CopiedParameter| (path.parameter(copy.name), copy.var.as_detached_tensor());
            copies.iter().map(copy).collect()
        }
    };
    for (key, value) in values {
        if !stored.repeats(&key, &value)? {
            let reason = format!(
                "`{key}` has other values than those of the embedding, which `ensure_weight_tying` says it shares"
            );
            return Err(Error::Unsupported { operation: "load", adapter: plan.adapter.clone(), reason });
        }
    }
    Ok(())
}

fn stored_values(path: &ModulePath, adapter: &dyn Adapter) -> Result<Vec<(String, Tensor)>> {
    // Also those that are saved under the other layer only: a file of all embeddings has them twice.
    adapter
        .tensors()
        .iter()
        .map(|tensor| Ok((path.parameter(tensor.key), adapter.stored_tensor(tensor)?)))
        .collect()
}
