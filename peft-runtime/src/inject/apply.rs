//! Carries out a plan: first everything that can fail, then the changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Tensor, Var};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::plan::{Origin, Plan, PlannedContent};
use super::planning::plan;
use super::report::InjectionReport;
use crate::adapter::{AdapterMethod, Built, FreshTensors, Site, StoredTensor, StoredTensors};
use crate::error::{Error, Fault, Result};
use crate::layer::{AdapterStack, Content, CopiedParameter, Dropout, Layer, Slot, StackState};
use crate::module::{Injectable, leaves, leaves_mut, leaves_of, replicate, replicated_tree};
use crate::ops::random::DropoutStream;
use crate::path::ModulePath;

/// The last parts of the key under which PEFT stores the bias of a copied layer once more, if biases train.
pub(crate) const COPIED_BIAS: &str = "modules_to_save.bias";

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
    content: Option<Content>,
    /// The layer's own bias, as a variable.
    bias: Option<Var>,
    /// The layer's own weight, without what the adapter took out of it.
    weight: Option<Tensor>,
}

/// What an injection changes on each layer.
pub(crate) type LayerChanges = BTreeMap<ModulePath, LayerChange>;

/// Puts a fresh adapter on a model.
pub(crate) fn inject_adapter<M: Injectable + ?Sized>(
    model: &mut M,
    method: &dyn AdapterMethod,
    name: &str,
) -> Result<InjectionReport> {
    let plan = plan(model, method, name, Origin::Caller)?;
    let changes = make(model, &plan, Tensors::Fresh)?;
    commit(model, &plan, changes, true)
}

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
        let Some(PlannedContent::TiedTokens(owner)) = plan.content(path) else { continue };
        let tied = match changes.get(owner).and_then(|change| change.content.as_ref()) {
            Some(Content::Adapter(adapter)) => adapter.tied_to(layer.geometry()),
            _ => None,
        };
        changes.entry(path.clone()).or_default().content = tied.map(Content::Adapter);
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
        return Err(Error::Tensors { adapter: plan.adapter.clone(), report });
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
            let name = plan.bias_key(path);
            stored.ignore(&path.parameter(COPIED_BIAS));
            stored.take(path.parameter(name), own.dims(), own.dtype(), own.device())?
        }
    }))
}

/// Puts on the model what [`make`] made for it.
pub(crate) fn commit<M: Injectable + ?Sized>(
    model: &mut M,
    plan: &Plan,
    mut changes: LayerChanges,
    trainable: bool,
) -> Result<InjectionReport> {
    let state = stack_state(&leaves(model));
    if state.is_none() {
        freeze(model)?;
    }
    if let Some(order) = &plan.replication {
        replicate(model, order);
    }
    if state.is_none() {
        seed_dropout(model, plan.method.seed());
    }
    let mut report = InjectionReport {
        adapter: plan.adapter.clone(),
        unmatched_targets: plan.unmatched_targets.clone(),
        active: state.is_none(),
        ..InjectionReport::default()
    };
    let state = state.unwrap_or_else(|| StackState {
        active: vec![plan.adapter.clone()],
        enabled: true,
        training: is_training(model),
    });
    for (path, layer) in leaves_mut(model) {
        let Some(LayerChange { content, bias, weight }) = changes.remove(&path) else { continue };
        if let Some(bias) = &bias {
            report.add_bias(&path, bias);
        }
        if bias.is_some() || weight.is_some() {
            let own_name = layer.weight_name();
            layer.map_parameters(&mut |name, own| {
                let weight = weight.as_ref().filter(|_| name == own_name);
                Ok(weight.cloned().unwrap_or_else(|| bias_or_own(name, own, bias.as_ref())))
            })?;
        }
        if let Some(content) = content {
            report.add_content(&path, &content);
            push_slot(layer, &path, plan, content, &state, trainable);
        }
    }
    Ok(report)
}

/// Begins the streams of the model's own dropout anew.
fn seed_dropout<M: Injectable + ?Sized>(model: &mut M, seed: u64) {
    for (path, layer) in leaves_mut(model) {
        if let Some(dropout) = layer.dropout_mut() {
            dropout.set_seed(seed, &path);
        }
    }
}

/// Whether a model without adapters was put into training mode, which its own dropout tells.
fn is_training<M: Injectable + ?Sized>(model: &M) -> bool {
    leaves(model).iter().any(|(_, leaf)| leaf.dropout().is_some_and(Dropout::training))
}

/// The new bias where the parameter is one and there is one, otherwise the layer's own parameter.
fn bias_or_own(name: &str, own: &Tensor, bias: Option<&Var>) -> Tensor {
    let bias = bias.filter(|_| name == "bias").map(Var::as_tensor);
    bias.unwrap_or(own).clone()
}

/// Puts on the model what [`make`] made, in the place of the adapter that has the name: what was active, trainable or
/// first among the layer's adapters stays so.
pub(crate) fn swap<M: Injectable + ?Sized>(
    model: &mut M,
    plan: &Plan,
    changes: LayerChanges,
    trainable: bool,
) -> Result<InjectionReport> {
    let active = leaves(model)
        .iter()
        .any(|(_, leaf)| leaf.stack().is_some_and(|stack| stack.active().contains(&plan.adapter)));
    // The one before may have trained biases of the base model.
    freeze(model)?;
    let mut positions: BTreeMap<ModulePath, usize> = BTreeMap::new();
    for (path, layer) in leaves_mut(model) {
        let position = layer.stack_mut().and_then(|stack| stack.take(&plan.adapter));
        positions.extend(position.map(|position| (path, position)));
    }
    let report = commit(model, plan, changes, trainable)?;
    for (path, layer) in leaves_mut(model) {
        let Some(stack) = layer.stack_mut() else { continue };
        if let Some(position) = positions.get(&path) {
            stack.move_last_to(&plan.adapter, *position);
        }
        if stack.slots().is_empty() {
            layer.drop_stack(false);
        }
    }
    Ok(InjectionReport { active, ..report })
}

/// Puts the adapter on top of the layer's stack.
fn push_slot(
    layer: &mut dyn Layer,
    path: &ModulePath,
    plan: &Plan,
    content: Content,
    state: &StackState,
    trainable: bool,
) {
    layer.ensure_stack(AdapterStack::new(path.clone(), layer.geometry(), state.clone()));
    if let Some(stack) = layer.stack_mut() {
        let dropout = DropoutStream::new(plan.method.seed(), format!("{}/{path}/dropout", plan.adapter));
        let (name, method) = (plan.adapter.clone(), Arc::clone(&plan.method));
        stack.push(Slot { name, method, content, trainable, dropout });
    }
}

/// Takes the base model's parameters out of any graph, so that none of them is a variable any more.
fn freeze<M: Injectable + ?Sized>(model: &mut M) -> Result<()> {
    for (path, layer) in leaves_mut(model) {
        if layer.parameters().iter().any(|(_, own)| own.track_op()) {
            layer.map_parameters(&mut |_, own| Ok(own.detach())).map_err(|error| match error {
                Error::Candle(source) => Error::on_layer(&path)(source),
                other => other,
            })?;
        }
    }
    Ok(())
}

/// What is active, enabled and training in the model; `None` if it has no adapters.
fn stack_state(leaves: &[(ModulePath, &dyn Layer)]) -> Option<StackState> {
    leaves.iter().find_map(|(_, layer)| layer.stack()).map(|stack| stack.state().clone())
}
