//! Which adapters are applied, and how: active, enabled, training, scaled.

use std::sync::Arc;

use super::merge::unmerge_adapters;
use super::{check_known, check_not_merged, for_each_stack};
use crate::error::{Error, Result};
use crate::layer::{Content, Slot};
use crate::module::{Injectable, leaves, leaves_mut};

/// Makes exactly `names` active, in this order; what is merged is unmerged first.
pub(crate) fn set_active<M: Injectable + ?Sized>(model: &mut M, names: &[&str]) -> Result<()> {
    let all = leaves(model);
    check_known(&all, names)?;
    for (path, leaf) in &all {
        let Some(stack) = leaf.stack() else { continue };
        let replaces = |name: &&&str| stack.slot(name).is_some_and(Slot::replaces_values);
        let owners: Vec<String> = names.iter().filter(replaces).map(|name| (*name).to_owned()).collect();
        if owners.len() > 1 {
            return Err(Error::CopiesCollide { path: path.clone(), adapters: owners });
        }
    }
    unmerge_adapters(model)?;
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    for_each_stack(model, |stack| stack.set_active(&names));
    Ok(())
}

pub(crate) fn set_enabled<M: Injectable + ?Sized>(model: &mut M, enabled: bool) {
    for_each_stack(model, |stack| stack.set_enabled(enabled));
}

/// Turns dropout on or off, both the adapters' and the model's own.
pub(crate) fn set_training<M: Injectable + ?Sized>(model: &mut M, training: bool) {
    for_each_stack(model, |stack| stack.set_training(training));
    for (path, layer) in leaves_mut(model) {
        if let Some(dropout) = layer.dropout_mut() {
            dropout.set_training(training, &path);
        }
    }
}

/// Sets whether the adapter's tensors are part of the graph.
pub(crate) fn set_trainable<M: Injectable + ?Sized>(
    model: &mut M,
    name: &str,
    trainable: bool,
) -> Result<()> {
    check_known(&leaves(model), &[name])?;
    for_each_stack(model, |stack| {
        if let Some(slot) = stack.slot_mut(name) {
            slot.trainable = trainable;
        }
    });
    Ok(())
}

/// Multiplies the adapter's scaling on every layer by `factor`.
pub(crate) fn scale_adapter<M: Injectable + ?Sized>(model: &mut M, name: &str, factor: f64) -> Result<()> {
    const OPERATION: &str = "scale";
    let all = leaves(model);
    check_known(&all, &[name])?;
    check_not_merged(model, name, OPERATION)?;
    let unsupported =
        |reason: String| Error::Unsupported { operation: OPERATION, adapter: name.to_owned(), reason };
    if !factor.is_finite() {
        return Err(unsupported(format!("the factor {factor} is not a finite number")));
    }
    let slots = || all.iter().filter_map(|(_, leaf)| leaf.stack()?.slot(name));
    let scales = |slot: &Slot| slot.adapter().is_some_and(|adapter| adapter.scaling().is_some());
    if !slots().any(scales) {
        let method = slots().map(|slot| slot.method.peft_type()).next().unwrap_or_default();
        return Err(unsupported(format!("{method} has no scaling")));
    }
    for_each_stack(model, |stack| {
        let Some(slot) = stack.slot_mut(name) else { return };
        let Content::Adapter(adapter) = &mut slot.content else { return };
        let scaled = adapter.scaling().and_then(|scaling| adapter.with_scaling(scaling * factor));
        if let Some(scaled) = scaled {
            *adapter = Arc::clone(&scaled);
        }
    });
    Ok(())
}
