//! What trains, and how much of it there is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{Tensor, Var};

use crate::config::Bias;
use crate::layer::{AdapterStack, Content, Layer, Slot};
use crate::module::{Injectable, leaves};
use crate::ops::storage_address;
use crate::path::ModulePath;

/// The variables of the active adapters in model order, each under the name it has in memory in PEFT:
/// `layers.0.q_proj.lora_A.default.weight`.
pub(crate) fn trainable_parameters<M: Injectable + ?Sized>(model: &M) -> Vec<(String, Var)> {
    let leaves = leaves(model);
    let mut parameters = Vec::new();
    // An adapter that is active twice trains once, and so does a copy that two layers share.
    let (mut known, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    let mut active_slots =
        leaves.iter().filter_map(|(_, leaf)| leaf.stack()).flat_map(AdapterStack::active_slots);
    let biases_train = active_slots.any(|slot| slot.method.bias() != Bias::None && slot.trainable);
    for (path, leaf) in &leaves {
        if biases_train {
            parameters.extend(bias_variable(path, *leaf));
        }
        let Some(stack) = leaf.stack().filter(|stack| stack.enabled()) else { continue };
        for slot in stack.active_slots().filter(|slot| slot.trainable) {
            let variables = slot_variables(path, slot).into_iter();
            let mut is_new = |(name, var): &(String, Var)| {
                known.insert(name.clone())
                    && (var.elem_count() == 0 || addresses.insert(storage_address(var)))
            };
            parameters.extend(variables.filter(|variable| is_new(variable)));
        }
    }
    parameters
}

/// The bias of a base layer, if it is a variable and no copy stands in for the layer.
pub(crate) fn bias_variable(path: &ModulePath, leaf: &dyn Layer) -> Option<(String, Var)> {
    if leaf.stack().is_some_and(|stack| stack.active_slots().any(|slot| slot.copy().is_some())) {
        return None;
    }
    let (_, bias) = leaf.parameters().into_iter().find(|(name, _)| *name == "bias")?;
    let name = if leaf.stack().is_some() { "base_layer.bias" } else { "bias" };
    let var = Var::from_tensor(bias).ok().filter(|_| bias.is_variable())?;
    Some((path.parameter(name), var))
}

/// What an adapter trains on one layer, each variable under the name it has in memory in PEFT.
pub(crate) fn slot_variables(path: &ModulePath, slot: &Slot) -> Vec<(String, Var)> {
    match &slot.content {
        Content::Adapter(adapter) => {
            let tensors = adapter.tensors().into_iter().filter(|tensor| tensor.trainable);
            tensors
                .map(|tensor| (path.parameter(&key_in_memory(tensor.key, &slot.name)), tensor.var.clone()))
                .collect()
        }
        Content::Copy(parameters) => parameters
            .iter()
            .map(|copy| {
                let name = format!("modules_to_save.{}.{}", slot.name, copy.name);
                (path.parameter(&name), copy.var.clone())
            })
            .collect(),
    }
}

/// A file key with the adapter's name where PEFT puts it in memory: `lora_A.NAME.weight`, `ia3_l.NAME`.
pub(crate) fn key_in_memory(key: &str, adapter: &str) -> String {
    match key.rsplit_once('.') {
        Some((container, parameter @ ("weight" | "bias"))) => format!("{container}.{adapter}.{parameter}"),
        _ => format!("{key}.{adapter}"),
    }
}

/// How many elements train, and how many there are in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ParameterCount {
    pub(crate) trainable: usize,
    pub(crate) all: usize,
}

/// Counts every distinct parameter once: the base model's, and those of all adapters, active or not.
pub(crate) fn count_parameters<M: Injectable + ?Sized>(model: &M) -> ParameterCount {
    let mut elements: BTreeMap<(usize, usize), usize> = leaves(model)
        .iter()
        .filter_map(|(_, leaf)| leaf.quantized_weight())
        .map(|weight| ((Arc::as_ptr(weight).addr(), 0), weight.shape().elem_count()))
        .collect();
    let mut count = |tensor: &Tensor| {
        elements.insert(storage_address(tensor), tensor.elem_count());
    };
    for (_, leaf) in leaves(model) {
        leaf.parameters().iter().for_each(|(_, tensor)| count(tensor));
        for slot in leaf.stack().into_iter().flat_map(AdapterStack::slots) {
            match &slot.content {
                Content::Adapter(adapter) => adapter.tensors().iter().for_each(|tensor| count(tensor.var)),
                Content::Copy(parameters) => parameters.iter().for_each(|copy| count(&copy.var)),
            }
        }
    }
    let trainable = trainable_parameters(model).iter().map(|(_, var)| var.elem_count()).sum();
    ParameterCount { trainable, all: elements.values().sum() }
}
