//! Operations on a model's adapters: which are applied, which are merged, which train.

mod activate;
mod delete;
mod merge;
mod parameters;
mod requantize;
mod rows;
mod weighted_sum;

pub(crate) use activate::{scale_adapter, set_active, set_enabled, set_trainable, set_training};
pub(crate) use delete::{delete_adapter, unload};
pub use merge::MergeOptions;
pub(crate) use merge::{is_finite, merge_adapters, merge_and_unload, merge_error, unmerge_adapters};
pub(crate) use parameters::{bias_variable, count_parameters, slot_variables, trainable_parameters};
pub(crate) use requantize::merge_and_requantize;
#[cfg(feature = "models")]
pub(crate) use requantize::requantize;
pub use requantize::{RequantizeReport, RequantizedLayer};
pub(crate) use rows::with_adapter_rows;
pub(crate) use weighted_sum::add_weighted_adapter;

use std::sync::Arc;

use crate::adapter::AdapterMethod;
use crate::error::{Error, Fault, Result};
use crate::inject::name_fault;
use crate::layer::{AdapterStack, Layer};
use crate::module::{Injectable, leaves, leaves_mut};
use crate::path::ModulePath;

/// The names of a model's adapters, in the order in which the layers list them.
pub(crate) fn adapter_names(leaves: &[(ModulePath, &dyn Layer)]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for slot in leaves.iter().filter_map(|(_, leaf)| leaf.stack()).flat_map(AdapterStack::slots) {
        if !names.contains(&slot.name) {
            names.push(slot.name.clone());
        }
    }
    names
}

/// The active adapters in order, as the first layer with any lists them.
pub(crate) fn active_adapters<M: Injectable + ?Sized>(model: &M) -> Vec<String> {
    let leaves = leaves(model);
    let mut stacks = leaves.iter().filter_map(|(_, leaf)| leaf.stack());
    stacks.find(|stack| !stack.active().is_empty()).map(|stack| stack.active().to_vec()).unwrap_or_default()
}

/// An error unless the model has every one of `names`.
pub(crate) fn check_known<S: AsRef<str>>(leaves: &[(ModulePath, &dyn Layer)], names: &[S]) -> Result<()> {
    let known = adapter_names(leaves);
    match names.iter().map(AsRef::as_ref).find(|name| !known.iter().any(|other| other == name)) {
        Some(name) => Err(Error::UnknownAdapter { name: name.to_owned(), known }),
        None => Ok(()),
    }
}

/// Whether the adapter is held in f32 on layers in half precision.
pub(crate) fn autocasts(leaves: &[(ModulePath, &dyn Layer)], name: &str) -> bool {
    let mut slots = leaves.iter().filter_map(|(_, leaf)| leaf.stack()?.slot(name));
    slots.next().is_none_or(|slot| slot.autocasts)
}

/// The settings of an adapter.
pub(crate) fn method_of<M: Injectable + ?Sized>(model: &M, name: &str) -> Result<Arc<dyn AdapterMethod>> {
    let leaves = leaves(model);
    let mut slots = leaves.iter().filter_map(|(_, leaf)| leaf.stack()?.slot(name));
    match slots.next() {
        Some(slot) => Ok(Arc::clone(&slot.method)),
        None => {
            check_known(&leaves, &[name])?;
            Err(Error::UnknownAdapter { name: name.to_owned(), known: Vec::new() })
        }
    }
}

/// An error if any layer has the adapter merged.
pub(crate) fn check_not_merged<M: Injectable + ?Sized>(
    model: &M,
    name: &str,
    operation: &'static str,
) -> Result<()> {
    let leaves = leaves(model);
    let mut stacks = leaves.iter().filter_map(|(_, leaf)| leaf.stack());
    if stacks.any(|stack| stack.merged().iter().any(|merged| merged == name)) {
        return Err(Error::Merged { adapter: name.to_owned(), operation });
    }
    Ok(())
}

/// Calls `f` with every layer that has a place for adapters, after updating the layer's path in case it was moved.
fn for_each_layer<M: Injectable + ?Sized>(model: &mut M, mut f: impl FnMut(&mut dyn Layer)) {
    for (path, layer) in leaves_mut(model) {
        if let Some(stack) = layer.stack_mut() {
            stack.set_path(path);
            f(layer);
        }
    }
}

/// Calls `f` with the adapters of every layer that has a place for them.
pub(crate) fn for_each_stack<M: Injectable + ?Sized>(model: &mut M, mut f: impl FnMut(&mut AdapterStack)) {
    for_each_layer(model, |layer| {
        if let Some(stack) = layer.stack_mut() {
            f(stack);
        }
    });
}

/// Renames the adapter everywhere; nothing else about it changes.
pub(crate) fn rename_adapter<M: Injectable + ?Sized>(
    model: &mut M,
    name: &str,
    new_name: &str,
) -> Result<()> {
    let all = leaves(model);
    check_known(&all, &[name])?;
    let taken = name != new_name && adapter_names(&all).iter().any(|known| known == new_name);
    let duplicate = taken.then(|| Fault::DuplicateName { name: new_name.to_owned() });
    let faults: Vec<Fault> = name_fault(new_name).into_iter().chain(duplicate).collect();
    if !faults.is_empty() {
        return Err(Error::Plan { adapter: new_name.to_owned(), faults });
    }
    for_each_stack(model, |stack| stack.rename(name, new_name));
    Ok(())
}
