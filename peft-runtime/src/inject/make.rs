//! Makes what a plan puts on the layers: everything that can fail. No model is changed.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::plan::Plan;
use super::tied::{check_tied, tied_content};
use crate::adapter::{Built, FreshTensors, Site, StoredTensor, StoredTensors};
use crate::error::{Error, Fault, Result};
use crate::layer::{Content, CopiedParameter, Layer};
use crate::module::{Injectable, leaves, leaves_of, replicated_tree};
use crate::path::ModulePath;

/// Where the tensors of a new adapter come from.
pub(crate) enum Tensors<'a, 'b> {
    /// Drawn from the seed of the method.
    Fresh,
    /// Taken out of a state dict.
    Stored(&'b mut StoredTensors<'a>),
}

/// What an injection changes on one layer.
#[derive(Default)]
pub(crate) struct LayerChange {
    /// What the adapter has there.
    pub(super) content: Option<Content>,
    /// The layer's own bias, as a variable.
    pub(super) bias: Option<Var>,
    /// The layer's own weight, without what the adapter took out of it.
    pub(super) weight: Option<Tensor>,
}

/// What an injection changes on each layer.
pub(crate) type LayerChanges = BTreeMap<ModulePath, LayerChange>;

/// Makes everything that `plan` puts on the layers of a model. Nothing is changed.
pub(crate) fn make<M: Injectable + ?Sized>(
    model: &M,
    plan: &Plan,
    mut tensors: Tensors<'_, '_>,
) -> Result<LayerChanges> {
    let all = planned_leaves(model, plan);
    let mut changes = LayerChanges::new();
    match &mut tensors {
        // Each layer's values come from streams of its own, in whatever order they are drawn.
        Tensors::Fresh => {
            let made: Vec<Result<LayerChange>> = all
                .par_iter()
                .map(|(path, layer)| make_change(path, *layer, plan, &mut Tensors::Fresh))
                .collect();
            for ((path, _), change) in all.iter().zip(made) {
                changes.insert(path.clone(), change?);
            }
        }
        stored @ Tensors::Stored(_) => {
            for (path, layer) in &all {
                changes.insert(path.clone(), make_change(path, *layer, plan, stored)?);
            }
        }
    }
    for (path, layer) in &all {
        let owner = plan.owner(path).and_then(|owner| changes.get(owner)?.content.as_ref());
        let Some(tied) = owner.and_then(|owner| tied_content(*layer, owner, plan.tied_scaling(path))) else {
            continue;
        };
        if let Tensors::Stored(stored) = &mut tensors {
            check_tied(path, &tied, plan, stored)?;
        }
        changes.entry(path.clone()).or_default().content = Some(tied);
    }
    Ok(changes)
}

/// Makes what `plan` puts on one layer; what is tied to another layer is made when all others are.
fn make_change(
    path: &ModulePath,
    layer: &dyn Layer,
    plan: &Plan,
    tensors: &mut Tensors<'_, '_>,
) -> Result<LayerChange> {
    let bias = if plan.trains_bias(path) { make_bias(path, layer, plan, tensors)? } else { None };
    if plan.copies(path) {
        return Ok(LayerChange { content: Some(make_copy(path, layer, tensors)?), bias, weight: None });
    }
    let built = if plan.adapts(path) { make_adapter(path, layer, plan, tensors)? } else { None };
    Ok(match built {
        Some(Built { adapter, weight }) => {
            LayerChange { content: Some(Content::Adapter(adapter)), bias, weight }
        }
        None => LayerChange { bias, ..LayerChange::default() },
    })
}

/// The leaves that a model has once `plan` has repeated its blocks.
fn planned_leaves<'m, M: Injectable + ?Sized>(
    model: &'m M,
    plan: &'m Plan,
) -> Vec<(ModulePath, &'m dyn Layer)> {
    match &plan.replication {
        Some(order) => leaves_of(replicated_tree(model, order)),
        None => leaves(model),
    }
}

/// Leaves the weights that `is_given` names as they are, though making the adapters took something out of them.
pub(crate) fn keep_weights<M: Injectable + ?Sized>(
    model: &M,
    plan: &Plan,
    changes: &mut LayerChanges,
    is_given: impl Fn(&ModulePath, &'static str) -> bool,
) {
    for (path, layer) in planned_leaves(model, plan) {
        if let Some(change) = changes.get_mut(&path)
            && is_given(&path, layer.weight_name())
        {
            change.weight = None;
        }
    }
}

/// Makes everything out of tensors that are in memory, of which each has to be used.
pub(crate) fn make_from_memory<M: Injectable + ?Sized>(
    model: &M,
    plan: &Plan,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<LayerChanges> {
    let stored = tensors.iter().map(|(key, tensor)| (key.clone(), StoredTensor::in_memory(tensor)));
    let stored: BTreeMap<String, StoredTensor<'_>> = stored.collect();
    let mut source = StoredTensors::new(&stored);
    let changes = make(model, plan, Tensors::Stored(&mut source))?;
    let report = source.report();
    if !report.is_empty() {
        return Err(Error::Tensors { adapter: plan.adapter.clone(), report: Box::new(report) });
    }
    Ok(changes)
}

fn make_adapter(
    path: &ModulePath,
    layer: &dyn Layer,
    plan: &Plan,
    tensors: &mut Tensors<'_, '_>,
) -> Result<Option<Built>> {
    let parameters = layer.parameters();
    let own = |wanted: &str| parameters.iter().find(|(name, _)| *name == wanted).map(|(_, tensor)| *tensor);
    let geometry = layer.geometry();
    let (dtype, device) = layer.dtype_and_device();
    let weight = || layer.dense_weight();
    let site = Site {
        path,
        kind: layer.kind(),
        geometry: &geometry,
        dtype,
        device: &device,
        bias: own("bias").map(Tensor::detach),
        autocasts: plan.autocasts,
        weight: &weight,
    };
    let built = match tensors {
        Tensors::Fresh => {
            let (seed, adapter, dtype) = (plan.method.seed(), plan.adapter.as_str(), site.adapter_dtype());
            let mut source = FreshTensors { seed, adapter, path, dtype, device: &device };
            plan.build(&site, &mut source)
        }
        Tensors::Stored(stored) => {
            let mut source = stored.of_layer(plan.stored_path(path), site.adapter_dtype(), &device);
            plan.build(&site, &mut source)
        }
    }?;
    let changes_weight = built.as_ref().is_some_and(|built| built.weight.is_some());
    if changes_weight && layer.quantized_weight().is_some() {
        let reason = "its init changes the base weight, which is quantized; make the layer dense first";
        let faults = vec![Fault::unsupported_layer(path, layer.kind(), plan.method.peft_type(), reason)];
        return Err(Error::Plan { adapter: plan.adapter.clone(), faults });
    }
    Ok(built)
}

/// A copy of the layer's parameters, which keep their own dtype.
fn make_copy(path: &ModulePath, layer: &dyn Layer, tensors: &mut Tensors<'_, '_>) -> Result<Content> {
    let copy = |(name, own): (&'static str, &Tensor)| {
        let var = match tensors {
            Tensors::Fresh => Var::from_tensor(&own.detach())?,
            Tensors::Stored(stored) => {
                stored.take(path.parameter(name), own.dims(), own.dtype(), own.device())?
            }
        };
        Ok(CopiedParameter { name, var })
    };
    Ok(Content::Copy(layer.parameters().into_iter().map(copy).collect::<Result<_>>()?))
}

/// The layer's own bias as a variable.
fn make_bias(
    path: &ModulePath,
    layer: &dyn Layer,
    plan: &Plan,
    tensors: &mut Tensors<'_, '_>,
) -> Result<Option<Var>> {
    let Some((_, own)) = layer.parameters().into_iter().find(|(name, _)| *name == "bias") else {
        return Ok(None);
    };
    Ok(Some(match tensors {
        Tensors::Fresh => Var::from_tensor(&own.detach())?,
        Tensors::Stored(stored) => {
            let copied = plan.copied_bias(path);
            if let Some(copied) = &copied {
                stored.ignore(|key| copied.is_second(key));
            }
            let key = copied.map_or_else(|| path.parameter(plan.bias_key(path)), |copied| copied.own());
            stored.take(key, own.dims(), own.dtype(), own.device())?
        }
    }))
}
