//! The base model's own parameters: saved as a state dict, loaded from one, and found in an adapter's file.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;

use crate::adapter::StoredTensor;
use crate::error::{Error, Result, ShapeMismatch, TensorReport};
use crate::layer::{AdapterStack, Layer, Slot};
use crate::method::BASE_LAYER_PATHS;
use crate::module::{Injectable, leaves, leaves_mut};
use crate::ops::storage_address;
use crate::path::ModulePath;

/// The base model's own parameters under the names they had before any injection.
pub(crate) fn base_state_dict<M: Injectable + ?Sized>(model: &M) -> BTreeMap<String, Tensor> {
    named_parameters(model, |layer| layer.parameters())
}

/// The base model's effective parameters, which include merged adapters.
pub(crate) fn merged_state_dict<M: Injectable + ?Sized>(model: &M) -> BTreeMap<String, Tensor> {
    named_parameters(model, |layer| {
        let acting = layer.stack().map(AdapterStack::acting).unwrap_or_default();
        match acting.into_iter().find_map(Slot::copy) {
            Some(copies) => copies.iter().map(|copy| (copy.name, copy.var.as_tensor())).collect(),
            None => layer.effective_parameters(),
        }
    })
}

fn named_parameters<'m, M: Injectable + ?Sized>(
    model: &'m M,
    parameters: impl Fn(&'m dyn Layer) -> Vec<(&'static str, &'m Tensor)>,
) -> BTreeMap<String, Tensor> {
    let mut named = BTreeMap::new();
    for (path, leaf) in leaves(model) {
        named.extend(
            parameters(leaf).into_iter().map(|(name, tensor)| (path.parameter(name), tensor.detach())),
        );
    }
    named
}

/// Sets the base model's own parameters to the values in `state`, which must hold exactly their names; for tied
/// parameters one name is enough.
pub(crate) fn load_base_state_dict<M: Injectable + ?Sized>(
    model: &mut M,
    state: &BTreeMap<String, Tensor>,
) -> Result<()> {
    const OPERATION: &str = "load base weights under";
    let all = leaves(model);
    for (_, leaf) in &all {
        if let Some(adapter) = leaf.stack().and_then(|stack| stack.merged().first()) {
            return Err(Error::Merged { adapter: adapter.clone(), operation: OPERATION });
        }
    }
    let mut report = TensorReport::default();
    let (mut values, mut used) = (BaseParameters::new(), BTreeSet::new());
    let mut tied: BTreeMap<(usize, usize), Tensor> = BTreeMap::new();
    let mut left_out = Vec::new();
    for (path, leaf) in &all {
        for (name, own) in leaf.parameters() {
            let key = path.parameter(name);
            match state.get(&key) {
                Some(stored) if stored.dims() != own.dims() => {
                    let (expected, found) = (own.dims().to_vec(), stored.dims().to_vec());
                    report.mismatched.push(ShapeMismatch { key: key.clone(), expected, found });
                }
                Some(stored) => {
                    let value = stored.detach().to_device(own.device())?.to_dtype(own.dtype())?;
                    tied.insert(storage_address(own), value.clone());
                    values.insert((path.clone(), name), value);
                }
                None => left_out.push((path.clone(), name, storage_address(own), key.clone())),
            }
            used.insert(key);
        }
    }
    for (path, name, place, key) in left_out {
        match tied.get(&place) {
            Some(value) => {
                values.insert((path, name), value.clone());
            }
            None => report.missing.push(key),
        }
    }
    report.unexpected = state.keys().filter(|key| !used.contains(*key)).cloned().collect();
    if !report.is_empty() {
        return Err(Error::BaseTensors { report });
    }
    replace_base(model, &values)
}

/// New values for the base model's parameters, by layer and by the parameter's name in the layer.
pub(super) type BaseParameters = BTreeMap<(ModulePath, &'static str), Tensor>;

/// Takes the keys that name base model parameters out of the unexpected ones, and reads their tensors.
pub(super) fn base_parameters<M: Injectable + ?Sized>(
    model: &M,
    report: &mut TensorReport,
    tensors: &BTreeMap<String, StoredTensor<'_>>,
) -> Result<BaseParameters> {
    let mut found = BTreeMap::new();
    if report.unexpected.is_empty() {
        return Ok(found);
    }
    let leaves = leaves(model);
    let mut unexpected = Vec::new();
    for key in std::mem::take(&mut report.unexpected) {
        let without = |key: String, inner: &str| key.replace(&format!(".{inner}."), ".");
        let named = BASE_LAYER_PATHS.into_iter().fold(key.clone(), without);
        let owner = leaves.iter().find_map(|(path, leaf)| Some((path, parameter(path, *leaf, &named)?)));
        match (owner, tensors.get(&key)) {
            (Some((_, (_, own))), Some(stored)) if own.dims() != stored.shape => {
                let (expected, found) = (own.dims().to_vec(), stored.shape.clone());
                report.mismatched.push(ShapeMismatch { key, expected, found });
            }
            (Some((path, (name, own))), Some(stored)) => {
                let tensor = (stored.read)(own.device())?.to_dtype(own.dtype())?;
                found.insert((path.clone(), name), tensor);
            }
            _ => unexpected.push(key),
        }
    }
    report.unexpected = unexpected;
    Ok(found)
}

fn parameter<'a>(path: &ModulePath, leaf: &'a dyn Layer, key: &str) -> Option<(&'static str, &'a Tensor)> {
    leaf.parameters().into_iter().find(|(name, _)| path.parameter(name) == key)
}

pub(super) fn replace_base<M: Injectable + ?Sized>(model: &mut M, values: &BaseParameters) -> Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    for (path, layer) in leaves_mut(model) {
        layer
            .map_parameters(&mut |name, own| Ok(values.get(&(path.clone(), name)).unwrap_or(own).clone()))?;
    }
    Ok(())
}
