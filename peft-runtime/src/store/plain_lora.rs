//! An adapter whose init changed the base weights, as one for the base model as it was.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::embeddings::SaveEmbeddings;
use super::keys::with_prefix;
use super::state_dict::state_dict;
use crate::adapter::Lora;
use crate::config::LoraConfig;
use crate::error::{Error, Result};
use crate::layer::Slot;
use crate::manage::method_of;
use crate::module::{Injectable, leaves};

/// The config and tensors of a LoRA adapter of twice the rank: B·A − B₀·A₀ on the original base, where B₀ and A₀ are the
/// factors the adapter started with.
pub(super) fn as_plain_lora<M: Injectable + ?Sized>(
    model: &M,
    name: &str,
    save: SaveEmbeddings,
) -> Result<(LoraConfig, BTreeMap<String, Tensor>)> {
    let method = method_of(model, name)?;
    let Some(config) = method.as_lora() else {
        let reason = format!("it is one of {}", method.peft_type());
        return Err(Error::Unsupported { operation: "save as plain LoRA", adapter: name.to_owned(), reason });
    };
    let mut tensors = state_dict(model, name, save)?;
    let leaves = leaves(model);
    let states: Vec<(_, &Lora)> = leaves
        .iter()
        .filter_map(|(path, leaf)| Some((path, leaf.stack()?.slot(name).and_then(Slot::adapter)?.as_lora()?)))
        .collect();
    if states.iter().all(|(_, lora)| lora.start().is_none()) {
        return Ok((config.clone(), tensors));
    }
    for (path, lora) in states {
        if lora.start().is_some() {
            // What the init left of the weight: the plain adapter is for all of it.
            tensors.remove(&with_prefix(&path.parameter("base_layer.weight")));
        }
        for (key, tensor) in lora.relative_to_original()? {
            tensors.insert(with_prefix(&path.parameter(key)), tensor);
        }
    }
    Ok((config.doubled(), tensors))
}
