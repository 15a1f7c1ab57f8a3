//! The adapter status of each layer, and of the model as a whole.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Device;

use crate::error::{Error, Result};
use crate::layer::{AdapterStack, Content, Slot};
use crate::manage::{adapter_names, count_parameters};
use crate::module::{Injectable, leaves};
use crate::path::ModulePath;

/// The adapter status of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerStatus {
    /// Where the layer is.
    pub name: ModulePath,
    /// Its type, as the module tree prints it: `lora.Linear`.
    pub module_type: String,
    /// Whether adapters take effect.
    pub enabled: bool,
    /// The active adapters in order, including those that the layer does not have.
    pub active_adapters: Vec<String>,
    /// The adapters merged into the weight, in order.
    pub merged_adapters: Vec<String>,
    /// Those of the layer's adapters that act on it now, in order: the merged ones, where any is, otherwise the active ones;
    /// none while adapters are disabled.
    pub acting_adapters: Vec<String>,
    /// Whether each adapter's tensors train when it is active.
    pub trainable: BTreeMap<String, bool>,
    /// The adapters that the layer has, by name.
    pub available_adapters: Vec<String>,
    /// Where each adapter's tensors are: `cpu`, `cuda`, `metal`.
    pub devices: BTreeMap<String, BTreeSet<&'static str>>,
}

/// The adapter status of a model; a value that differs between layers is [`Uniform::Irregular`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelStatus {
    /// The model's type.
    pub base_model_type: &'static str,
    /// The method of each adapter: `LORA`.
    pub peft_types: BTreeMap<String, &'static str>,
    /// How many elements train.
    pub trainable_params: usize,
    /// How many elements there are.
    pub total_params: usize,
    /// How many layers have a place for adapters.
    pub num_adapter_layers: usize,
    /// Whether adapters take effect.
    pub enabled: Uniform<bool>,
    /// The active adapters.
    pub active_adapters: Uniform<Vec<String>>,
    /// The adapters that are merged on every layer that has them.
    pub merged_adapters: Uniform<Vec<String>>,
    /// Whether each adapter's tensors train when it is active.
    pub trainable: BTreeMap<String, Uniform<bool>>,
    /// All adapters, by name.
    pub available_adapters: Vec<String>,
    /// Where each adapter's tensors are.
    pub devices: BTreeMap<String, BTreeSet<&'static str>>,
}

/// A value that may or may not be the same on all layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uniform<T> {
    /// All layers have this value.
    Everywhere(T),
    /// Layers differ.
    Irregular,
}

impl<T: PartialEq> Uniform<T> {
    /// The one value among `values`; `None` if there are none.
    fn of(values: impl IntoIterator<Item = T>) -> Option<Self> {
        let mut values = values.into_iter();
        let first = values.next()?;
        Some(if values.all(|value| value == first) { Self::Everywhere(first) } else { Self::Irregular })
    }
}

/// The status of every layer that has a place for adapters, in model order.
pub(crate) fn layer_status<M: Injectable + ?Sized>(model: &M) -> Vec<LayerStatus> {
    let mut status = Vec::new();
    for (path, layer) in leaves(model) {
        let Some(stack) = layer.stack() else { continue };
        let slots = || stack.slots().iter();
        let mut available: Vec<String> = slots().map(|slot| slot.name.clone()).collect();
        available.sort();
        status.push(LayerStatus {
            name: path,
            module_type: super::tree::type_name(layer),
            enabled: stack.enabled(),
            active_adapters: stack.active().to_vec(),
            merged_adapters: stack.merged().to_vec(),
            acting_adapters: stack.acting().into_iter().map(|slot| slot.name.clone()).collect(),
            trainable: slots().map(|slot| (slot.name.clone(), slot.trainable)).collect(),
            available_adapters: available,
            devices: slots().map(|slot| (slot.name.clone(), devices(slot))).collect(),
        });
    }
    status
}

fn devices(slot: &Slot) -> BTreeSet<&'static str> {
    let name = |device: &Device| match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    };
    match &slot.content {
        Content::Adapter(adapter) => {
            adapter.tensors().iter().map(|tensor| name(tensor.var.device())).collect()
        }
        Content::Copy(copies) => copies.iter().map(|copy| name(copy.var.device())).collect(),
    }
}

/// The status of the model.
///
/// # Errors
/// [`Error::NoAdapters`](crate::Error::NoAdapters).
pub(crate) fn model_status<M: Injectable + ?Sized>(model: &M) -> Result<ModelStatus> {
    let layers = layer_status(model);
    let none = || Error::NoAdapters { operation: "report the status" };
    let enabled = Uniform::of(layers.iter().map(|layer| layer.enabled)).ok_or_else(none)?;
    let active = layers.iter().map(|layer| layer.active_adapters.clone());
    let active_adapters = Uniform::of(active).ok_or_else(none)?;
    let all = leaves(model);
    let slots = || all.iter().filter_map(|(_, leaf)| leaf.stack()).flat_map(AdapterStack::slots);
    let mut devices: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
    for layer in &layers {
        for (adapter, names) in &layer.devices {
            devices.entry(adapter.clone()).or_default().extend(names);
        }
    }
    let mut available = adapter_names(&all);
    available.sort();
    let trainable = |adapter: &String| {
        let values = layers.iter().filter_map(|layer| layer.trainable.get(adapter).copied());
        Some((adapter.clone(), Uniform::of(values)?))
    };
    let count = count_parameters(model);
    Ok(ModelStatus {
        base_model_type: M::SCHEMA.name(),
        peft_types: slots().map(|slot| (slot.name.clone(), slot.method.peft_type())).collect(),
        trainable_params: count.trainable,
        total_params: count.all,
        num_adapter_layers: layers.len(),
        enabled,
        active_adapters,
        merged_adapters: merged(&layers),
        trainable: available.iter().filter_map(trainable).collect(),
        available_adapters: available,
        devices,
    })
}

/// The merged adapters; irregular if a layer has one of them and it is not merged there.
fn merged(layers: &[LayerStatus]) -> Uniform<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for name in layers.iter().flat_map(|layer| &layer.merged_adapters) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let unmerged = |layer: &LayerStatus| {
        let has =
            |name: &String| layer.available_adapters.contains(name) && !layer.merged_adapters.contains(name);
        names.iter().any(has)
    };
    if layers.iter().any(unmerged) { Uniform::Irregular } else { Uniform::Everywhere(names) }
}
