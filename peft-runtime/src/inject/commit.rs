//! Changes a model to what was made for it. Nothing here depends on files or on what the caller asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Tensor, Var};

use super::make::{LayerChange, LayerChanges, Tensors, make};
use super::options::InjectOptions;
use super::plan::{Origin, Plan};
use super::planning::plan;
use super::report::InjectionReport;
use crate::adapter::AdapterMethod;
use crate::error::{Error, Result};
use crate::layer::{AdapterStack, Content, Dropout, Layer, Slot, StackState};
use crate::module::{Injectable, leaves, leaves_mut, replicate};
use crate::ops::random::DropoutStream;
use crate::path::ModulePath;

/// Puts a fresh adapter on a model.
pub(crate) fn inject_adapter<M: Injectable + ?Sized>(
    model: &mut M,
    method: &dyn AdapterMethod,
    name: &str,
    options: InjectOptions,
) -> Result<InjectionReport> {
    let plan = plan(model, method, name, Origin::Caller)?.with_autocasts(options.autocasts());
    let changes = make(model, &plan, Tensors::Fresh)?;
    commit(model, &plan, changes, true)
}

/// Puts on the model what [`make`] made for it, next to what the model has.
pub(crate) fn commit<M: Injectable + ?Sized>(
    model: &mut M,
    plan: &Plan,
    changes: LayerChanges,
    trainable: bool,
) -> Result<InjectionReport> {
    let state = settle(model)?;
    put(model, plan, changes, trainable, state)
}

/// Activates anew what is active, as PEFT does where an adapter is added: nothing is merged then, and all layers agree
/// on what is active, which they need not after a deletion. Returns the state on which they agree; `None` without adapters.
fn settle<M: Injectable + ?Sized>(model: &mut M) -> Result<Option<StackState>> {
    let Some(state) = stack_state(&leaves(model)) else { return Ok(None) };
    for (_, layer) in leaves_mut(model) {
        layer.unmerge()?;
        if let Some(stack) = layer.stack_mut() {
            stack.set_active(&state.active);
        }
    }
    Ok(Some(state))
}

/// Puts on the model what was made for it; its layers have the state `state`, `None` if they have no adapters yet.
fn put<M: Injectable + ?Sized>(
    model: &mut M,
    plan: &Plan,
    mut changes: LayerChanges,
    trainable: bool,
    state: Option<StackState>,
) -> Result<InjectionReport> {
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
        unmatched_patterns: plan.unmatched_patterns.clone(),
        active: state.is_none(),
        enabled: state.as_ref().is_none_or(|state| state.enabled),
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
            report.add_content(&path, &content, plan.owner(&path).is_some());
            push_slot(layer, &path, plan, content, &state, trainable);
            if acts(layer, &plan.adapter) {
                report.acting.push(path);
            }
        }
    }
    Ok(report)
}

/// Whether the adapter acts on the layer now.
fn acts(layer: &dyn Layer, adapter: &str) -> bool {
    layer.stack().is_some_and(|stack| stack.acting().iter().any(|slot| slot.name == adapter))
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
    let state = stack_state(&leaves(model));
    let report = put(model, plan, changes, trainable, state)?;
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
        let autocasts = plan.autocasts;
        stack.push(Slot { name, method, content, trainable, autocasts, dropout });
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

/// What is active, enabled and training in the model, as the first layer with an active adapter has it; `None` if the
/// model has no adapters.
fn stack_state(leaves: &[(ModulePath, &dyn Layer)]) -> Option<StackState> {
    let stacks = || leaves.iter().filter_map(|(_, layer)| layer.stack());
    let first = stacks().find(|stack| !stack.active().is_empty()).or_else(|| stacks().next());
    first.map(|stack| stack.state().clone())
}
