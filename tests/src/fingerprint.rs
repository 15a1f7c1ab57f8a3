//! Everything that a failed call must leave as it was.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use peft_runtime::LayerStatus;
use peft_runtime::prelude::*;

use crate::tensors::bits;

/// The state of a model, bit for bit.
#[derive(Debug, PartialEq)]
pub struct Fingerprint {
    adapters: Vec<String>,
    active: Vec<String>,
    /// By layer: enabled, active, merged, trainable.
    layers: Vec<LayerStatus>,
    /// The names of the trainable variables.
    trainable: Vec<String>,
    tree: String,
    summary: String,
    /// The settings of each adapter.
    configs: BTreeMap<String, String>,
    /// Base, merged and adapter tensors by key.
    tensors: BTreeMap<String, Values>,
}

#[derive(PartialEq)]
struct Values {
    dtype: DType,
    dims: Vec<usize>,
    bits: Vec<u64>,
}

/// Bits are too many to print.
impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.dtype, self.dims)
    }
}

impl Values {
    fn of(tensor: &Tensor) -> Self {
        let bits = if tensor.elem_count() == 0 { Vec::new() } else { bits(tensor).unwrap_or_default() };
        Self { dtype: tensor.dtype(), dims: tensor.dims().to_vec(), bits }
    }
}

impl Fingerprint {
    /// The fingerprint of a model.
    ///
    /// # Errors
    /// If an adapter's tensors cannot be read.
    pub fn of<M: Injectable>(model: &M) -> peft_runtime::Result<Self> {
        let adapters = model.adapter_names();
        let mut configs = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        for adapter in &adapters {
            configs.insert(adapter.clone(), format!("{:?}", model.adapter_config(adapter)?));
            for (key, tensor) in model.adapter_state_dict(adapter)? {
                tensors.insert(format!("{adapter}/{key}"), Values::of(&tensor));
            }
        }
        for (place, state) in [("base", model.base_state_dict()), ("merged", model.merged_state_dict())] {
            tensors.extend(state.iter().map(|(key, tensor)| (format!("{place}/{key}"), Values::of(tensor))));
        }
        Ok(Self {
            adapters,
            active: model.active_adapters(),
            layers: model.layer_status(),
            trainable: model.trainable_parameters().into_iter().map(|(name, _)| name).collect(),
            tree: model.module_tree(),
            summary: model.trainable_summary(),
            configs,
            tensors,
        })
    }

    /// What differs between the two; empty if nothing does.
    pub fn changes(&self, other: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        let mut note = |changed: bool, what: &str| {
            if changed {
                changes.push(what.to_owned());
            }
        };
        note(self.adapters != other.adapters, "the names of the adapters");
        note(self.active != other.active, "the active adapters");
        note(self.layers != other.layers, "the status of a layer");
        note(self.trainable != other.trainable, "the variables that train");
        note(self.tree != other.tree, "the module tree");
        note(self.summary != other.summary, "the count of parameters");
        note(self.configs != other.configs, "the settings of an adapter");
        note(!self.tensors.keys().eq(other.tensors.keys()), "the names of the tensors");
        for (key, values) in &self.tensors {
            note(other.tensors.get(key).is_some_and(|other| other != values), key);
        }
        changes
    }
}
