//! Converts an adapter whose init changed the base weights into one for the original base model.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::embeddings::SaveEmbeddings;
use super::keys::with_prefix;
use super::state_dict::state_dict;
use crate::adapter::AdapterMethod;
use crate::error::{Error, Result};
use crate::layer::Slot;
use crate::manage::method_of;
use crate::module::{Injectable, leaves};

/// The settings and tensors of an adapter that computes the same on the original base weights.
pub(super) fn for_original_base<M: Injectable + ?Sized>(
    model: &M,
    name: &str,
    save: SaveEmbeddings,
) -> Result<(Arc<dyn AdapterMethod>, BTreeMap<String, Tensor>)> {
    let method = method_of(model, name)?;
    let Some(for_original) = method.for_original_base() else {
        let reason = format!("its method is {}", method.peft_type());
        return Err(Error::Unsupported { operation: "save as plain LoRA", adapter: name.to_owned(), reason });
    };
    let mut tensors = state_dict(model, name, save)?;
    let leaves = leaves(model);
    let adapters: Vec<_> = leaves
        .iter()
        .filter_map(|(path, leaf)| Some((path, leaf.stack()?.slot(name).and_then(Slot::adapter)?)))
        .collect();
    if !adapters.iter().any(|(_, adapter)| adapter.changed_base()) {
        return Ok((method, tensors));
    }
    for (path, adapter) in adapters {
        let Some(own) = adapter.for_original_base()? else { continue };
        if adapter.changed_base() {
            // The key holds what the init left of the weight; the new adapter is for the whole weight.
            tensors.remove(&with_prefix(&path.parameter(adapter.base_weight_key())));
        }
        tensors.extend(own.into_iter().map(|(key, tensor)| (with_prefix(&path.parameter(key)), tensor)));
    }
    Ok((for_original, tensors))
}
