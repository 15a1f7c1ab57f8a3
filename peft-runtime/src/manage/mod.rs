//! Operations on the adapters a model has: which act, which are merged, which train.

mod activate;
mod combine;
mod delete;
mod eva;
mod merge;
mod parameters;
mod rename;
mod rows;

pub(crate) use activate::{
    active_adapters, scale_adapter, set_active, set_enabled, set_trainable, set_training,
};
pub(crate) use combine::add_weighted_adapter;
pub(crate) use delete::{delete_adapter, unload};
pub(crate) use eva::initialise_eva;
pub use merge::MergeOptions;
pub(crate) use merge::{is_finite, merge_adapters, merge_and_unload, merge_error, unmerge_adapters};
pub(crate) use parameters::{bias_variable, count_parameters, slot_variables, trainable_parameters};
pub(crate) use rename::rename_adapter;
pub(crate) use rows::with_adapter_rows;

use std::sync::Arc;

use crate::ModulePath;
use crate::adapter::AdapterMethod;
use crate::error::{Error, Result};
use crate::layer::{AdaptedLayer, AdapterStack};
use crate::module::{Injectable, Leaf, LeafMut, leaves, leaves_mut};

/// The names of a model's adapters, in the order in which the layers show them.
pub(crate) fn adapter_names(leaves: &[(ModulePath, Leaf<'_>)]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for slot in leaves.iter().filter_map(|(_, leaf)| leaf.stack()).flat_map(AdapterStack::slots) {
        if !names.contains(&slot.name) {
            names.push(slot.name.clone());
        }
    }
    names
}

/// An error unless the model has every one of `names`.
pub(crate) fn check_known<S: AsRef<str>>(leaves: &[(ModulePath, Leaf<'_>)], names: &[S]) -> Result<()> {
    let known = adapter_names(leaves);
    match names.iter().map(AsRef::as_ref).find(|name| !known.iter().any(|other| other == name)) {
        Some(name) => Err(Error::UnknownAdapter { name: name.to_owned(), known }),
        None => Ok(()),
    }
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

/// Calls `f` with every layer that has a place for adapters.
fn for_each_layer<M: Injectable + ?Sized>(
    model: &mut M,
    mut f: impl FnMut(&ModulePath, &mut dyn AdaptedLayer),
) {
    for (path, leaf) in leaves_mut(model) {
        if let LeafMut::Adapted(layer) = leaf
            && layer.stack().is_some()
        {
            f(&path, layer);
        }
    }
}

/// Calls `f` with the adapters of every layer that has a place for them.
fn for_each_stack<M: Injectable + ?Sized>(model: &mut M, mut f: impl FnMut(&mut AdapterStack)) {
    for_each_layer(model, |_, layer| {
        if let Some(stack) = layer.stack_mut() {
            f(stack);
        }
    });
}
