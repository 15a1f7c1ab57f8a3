//! Removes adapters.

use std::sync::Arc;

use candle_core::Tensor;

use super::{check_known, check_not_merged, for_each_layer};
use crate::adapter::Adapter;
use crate::config::Bias;
use crate::error::{Error, Result};
use crate::layer::{AdapterStack, CopiedParameter, Layer, Slot};
use crate::module::{Injectable, leaves, leaves_mut};
use crate::path::ModulePath;

/// Deletes an adapter. Where it was the only active one, the layer's first other adapter by name becomes active; of those
/// with full copies, only the one that became active on the first layer.
pub(crate) fn delete_adapter<M: Injectable + ?Sized>(model: &mut M, name: &str) -> Result<()> {
    let all = leaves(model);
    check_known(&all, &[name])?;
    check_not_merged(model, name, "delete")?;
    let slots = all.iter().filter_map(|(_, leaf)| leaf.stack()?.slot(name));
    if slots.into_iter().any(|slot| slot.method.bias() != Bias::None) {
        freeze_biases(model)?;
    }
    restore_weights(model, name)?;
    let chosen = first_active_without(model, name);
    for_each_layer(model, |layer| {
        let Some(stack) = layer.stack_mut() else { return };
        stack.delete(name, chosen.as_deref());
        if stack.slots().is_empty() {
            layer.drop_stack(false);
        }
    });
    Ok(())
}

/// The adapter that is active once `name` is deleted, on the first layer that adapters add to.
fn first_active_without<M: Injectable + ?Sized>(model: &M, name: &str) -> Option<String> {
    let all = leaves(model);
    let mut stacks = all.iter().filter_map(|(_, leaf)| leaf.stack());
    let first = stacks.find(|stack| stack.adding().next().is_some())?;
    first.active_without(name).into_iter().next()
}

/// Restores to layers what the init of this adapter took out of their weights.
fn restore_weights<M: Injectable + ?Sized>(model: &mut M, name: &str) -> Result<()> {
    let restore = |(path, layer): (ModulePath, &dyn Layer)| {
        restored(layer, layer.parameters(), |slot| slot.name == name).map_err(Error::on_layer(&path))
    };
    let weights = leaves(model).into_iter().map(restore).collect::<Result<Vec<_>>>()?;
    for ((_, layer), weight) in leaves_mut(model).into_iter().zip(weights) {
        if let Some(weight) = weight {
            set_weight(layer, &weight)?;
        }
    }
    Ok(())
}

/// The weight among `parameters`, with what the inits of the selected adapters took out of it added back; `None` if
/// they took nothing.
fn restored(
    layer: &dyn Layer,
    parameters: Vec<(&'static str, &Tensor)>,
    which: impl Fn(&Slot) -> bool,
) -> candle_core::Result<Option<Tensor>> {
    let slots = layer.stack().map(AdapterStack::slots).unwrap_or_default().iter().filter(|slot| which(slot));
    let mut changed = slots.filter_map(Slot::adapter).filter(|adapter| adapter.changed_base()).peekable();
    let weight = parameters.into_iter().find(|(name, _)| *name == layer.weight_name());
    let (Some(_), Some((_, weight))) = (changed.peek(), weight) else { return Ok(None) };
    let add =
        |weight: Tensor, adapter: &Arc<dyn Adapter>| Ok(adapter.restored_weight(&weight)?.unwrap_or(weight));
    changed.try_fold(weight.detach(), add).map(Some)
}

fn set_weight(layer: &mut dyn Layer, weight: &Tensor) -> Result<()> {
    let own_name = layer.weight_name();
    layer.map_parameters(&mut |name, own| Ok(if name == own_name { weight.clone() } else { own.clone() }))
}

/// Removes all adapters. A merged layer stays merged; a layer with an active full copy keeps the copy.
pub(crate) fn unload<M: Injectable + ?Sized>(model: &mut M) -> Result<()> {
    freeze_biases(model)?;
    leaves_mut(model).into_iter().try_for_each(|(_, layer)| unload_layer(layer))
}

/// Removes the adapters from one layer, keeping what is merged and the active full copy.
pub(super) fn unload_layer(layer: &mut dyn Layer) -> Result<()> {
    let Some(stack) = layer.stack() else { return Ok(()) };
    let copy: Option<Vec<CopiedParameter>> = active_copy(stack).map(<[CopiedParameter]>::to_vec);
    let unmerged = |slot: &Slot| !stack.merged().contains(&slot.name);
    let weight = restored(layer, layer.effective_parameters(), unmerged)?;
    layer.drop_stack(true);
    if let Some(weight) = weight {
        set_weight(layer, &weight)?;
    }
    match copy {
        Some(copies) => layer.map_parameters(&mut |name, own| {
            let copy = copies.iter().find(|copy| copy.name == name);
            Ok(copy.map_or_else(|| own.clone(), |copy| copy.var.as_detached_tensor()))
        }),
        None => Ok(()),
    }
}

fn active_copy(stack: &AdapterStack) -> Option<&[CopiedParameter]> {
    stack.active_slots().find_map(Slot::copy)
}

/// Makes biases that were trained together with an adapter constants again; they keep their values.
fn freeze_biases<M: Injectable + ?Sized>(model: &mut M) -> Result<()> {
    for (_, layer) in leaves_mut(model) {
        if layer.parameters().iter().any(|(_, own)| own.is_variable()) {
            layer.map_parameters(&mut |name, own| {
                Ok(if name == "bias" { own.detach() } else { own.clone() })
            })?;
        }
    }
    Ok(())
}
