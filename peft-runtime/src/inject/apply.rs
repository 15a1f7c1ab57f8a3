//! Carries out a plan: first everything that can fail, then the changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Tensor, Var};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::plan::{Origin, Plan};
use super::reach::TokenPlan;
use super::report::InjectionReport;
use crate::ModulePath;
use crate::adapter::{
    AdapterMethod, Built, FreshTensors, Site, StoredTensor, StoredTensors, TensorSource, TrainableTokens,
};
use crate::error::{Error, Fault, Result};
use crate::layer::{AdaptedLayer, AdapterStack, Content, CopiedParameter, Dropout, Slot};
use crate::module::{Injectable, Leaf, LeafMut, leaves, leaves_mut, leaves_of, replicate, replicated_tree};
use crate::ops::random::DropoutStream;

/// The last parts of the key under which PEFT stores the bias of a copied layer once more, if biases train.
pub(crate) const COPIED_BIAS: &str = "modules_to_save.bias";

/// Where the tensors of a new adapter come from.
pub(crate) enum Tensors<'a, 'b> {
    /// Drawn from the seed of the method.
    Fresh,
    /// Taken out of a state dict.
    Stored(&'b mut StoredTensors<'a>),
}

/// What a plan puts on one layer.
#[derive(Default)]
pub(crate) struct Made {
    content: Option<Content>,
    bias: Option<Var>,
    weight: Option<Tensor>,
}

/// Puts a fresh adapter on a model.
pub(crate) fn inject_adapter<M: Injectable + ?Sized>(
    model: &mut M,
    method: &dyn AdapterMethod,
    name: &str,
) -> Result<InjectionReport> {
    let plan = Plan::new(model, method, name, Origin::Caller)?;
    let made = make(model, &plan, Tensors::Fresh)?;
    commit(model, &plan, made, true)
}

/// Makes everything that `plan` puts on the leaves of a model, in their order. Nothing is changed.
pub(crate) fn make<M: Injectable + ?Sized>(
    model: &M,
    plan: &Plan,
    mut tensors: Tensors<'_, '_>,
) -> Result<Vec<Made>> {
    let all = planned_leaves(model, plan);
    let made: Vec<Result<Made>> = match &mut tensors {
        // Each layer's values come from streams of its own, in whatever order they are drawn.
        Tensors::Fresh => {
            all.par_iter().map(|(path, leaf)| make_one(path, *leaf, plan, &mut Tensors::Fresh)).collect()
        }
        stored @ Tensors::Stored(_) => {
            all.iter().map(|(path, leaf)| make_one(path, *leaf, plan, stored)).collect()
        }
    };
    let mut made = made.into_iter().collect::<Result<Vec<_>>>()?;
    for (place, (path, leaf)) in all.iter().enumerate() {
        let (Leaf::Adapted(layer), Some(TokenPlan::TiedTo(owner))) = (leaf, plan.tokens.get(path)) else {
            continue;
        };
        let owner = all.iter().position(|(path, _)| path == owner).and_then(|owner| made.get(owner));
        let rows = owner.and_then(|made| match &made.content {
            Some(Content::Adapter(adapter)) => adapter.as_trainable_tokens(),
            _ => None,
        });
        if let Some(tied) = rows.map(|rows| rows.tied_to(layer.geometry())) {
            made[place].content = Some(Content::Adapter(Arc::new(tied)));
        }
    }
    Ok(made)
}

/// Makes what `plan` puts on one leaf.
fn make_one(path: &ModulePath, leaf: Leaf<'_>, plan: &Plan, tensors: &mut Tensors<'_, '_>) -> Result<Made> {
    let bias = if plan.biases.contains(path) { make_bias(path, &leaf, plan, tensors)? } else { None };
    Ok(match leaf {
        // Made when all others are.
        Leaf::Adapted(_) if matches!(plan.tokens.get(path), Some(TokenPlan::TiedTo(_))) => {
            Made { bias, ..Made::default() }
        }
        Leaf::Adapted(layer) if plan.adapted.contains(path) => {
            let Built { adapter, weight } = make_adapter(path, layer, plan, tensors)?;
            Made { content: Some(Content::Adapter(adapter)), bias, weight }
        }
        Leaf::Adapted(layer) if plan.copied.contains(path) => {
            Made { content: Some(make_copy(path, layer, tensors)?), bias, weight: None }
        }
        Leaf::Adapted(_) | Leaf::Plain(_) => Made { bias, ..Made::default() },
    })
}

/// The leaves that a model has once `plan` has repeated its blocks.
fn planned_leaves<'m, M: Injectable + ?Sized>(model: &'m M, plan: &'m Plan) -> Vec<(ModulePath, Leaf<'m>)> {
    match &plan.replication {
        Some(order) => leaves_of(replicated_tree(model, order)),
        None => leaves(model),
    }
}

/// Leaves the weights that `is_given` names as they are, though making the adapters took something out of them.
pub(crate) fn keep_weights<M: Injectable + ?Sized>(
    model: &M,
    plan: &Plan,
    made: &mut [Made],
    is_given: impl Fn(&ModulePath, &'static str) -> bool,
) {
    for ((path, leaf), made) in planned_leaves(model, plan).iter().zip(made) {
        if let Leaf::Adapted(layer) = leaf
            && made.weight.is_some()
            && is_given(path, layer.weight_name())
        {
            made.weight = None;
        }
    }
}

/// Makes everything out of tensors that are in memory, of which each has to be used.
pub(crate) fn make_from_memory<M: Injectable + ?Sized>(
    model: &M,
    plan: &Plan,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<Vec<Made>> {
    let stored = tensors.iter().map(|(key, tensor)| (key.clone(), StoredTensor::in_memory(tensor)));
    let stored: BTreeMap<String, StoredTensor<'_>> = stored.collect();
    let mut source = StoredTensors::new(&stored);
    let made = make(model, plan, Tensors::Stored(&mut source))?;
    let report = source.report();
    if !report.is_empty() {
        return Err(Error::Tensors { adapter: plan.adapter.clone(), report });
    }
    Ok(made)
}

fn make_adapter(
    path: &ModulePath,
    layer: &dyn AdaptedLayer,
    plan: &Plan,
    tensors: &mut Tensors<'_, '_>,
) -> Result<Built> {
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
            build(plan, &site, &mut source)
        }
        Tensors::Stored(stored) => {
            let mut source = stored.of_layer(plan.stored_path(path), site.adapter_dtype(), &device);
            build(plan, &site, &mut source)
        }
    }?;
    if built.weight.is_some() && layer.quantized_weight().is_some() {
        let reason =
            "its init changes the base weight, which is quantized; make the layer dense first".to_owned();
        let (kind, method) = (layer.kind().name, plan.method.peft_type());
        let faults = vec![Fault::UnsupportedLayer { path: path.clone(), kind, method, reason }];
        return Err(Error::Plan { adapter: plan.adapter.clone(), faults });
    }
    Ok(built)
}

/// The adapter that `plan` has for one layer.
pub(crate) fn build(plan: &Plan, site: &Site<'_>, source: &mut dyn TensorSource) -> Result<Built> {
    match plan.tokens.get(site.path) {
        Some(TokenPlan::Own(tokens)) => TrainableTokens::build(site, tokens, source),
        _ => plan.method.build(site, source),
    }
}

/// A copy of the layer's parameters, which keep their own dtype.
fn make_copy(path: &ModulePath, layer: &dyn AdaptedLayer, tensors: &mut Tensors<'_, '_>) -> Result<Content> {
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
    leaf: &Leaf<'_>,
    plan: &Plan,
    tensors: &mut Tensors<'_, '_>,
) -> Result<Option<Var>> {
    let Some((_, own)) = leaf.parameters().into_iter().find(|(name, _)| *name == "bias") else {
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
    made: Vec<Made>,
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
    let state =
        state.unwrap_or_else(|| AdapterStack::new(vec![plan.adapter.clone()], true, is_training(model)));
    for ((path, leaf), Made { content, bias, weight }) in leaves_mut(model).into_iter().zip(made) {
        if let Some(bias) = &bias {
            report.add_bias(&path, bias);
        }
        match leaf {
            LeafMut::Adapted(layer) => {
                if bias.is_some() || weight.is_some() {
                    let own_name = layer.weight_name();
                    layer.map_parameters(&mut |name, own| {
                        let weight = weight.as_ref().filter(|_| name == own_name);
                        Ok(weight.cloned().unwrap_or_else(|| bias_or_own(name, own, bias.as_ref())))
                    })?;
                }
                if let Some(content) = content {
                    report.add_content(&path, &content);
                    put(layer, &path, plan, content, &state, trainable);
                }
            }
            LeafMut::Plain(layer) => {
                if bias.is_some() {
                    layer.map_parameters(&mut |name, own| Ok(bias_or_own(name, own, bias.as_ref())))?;
                }
            }
        }
    }
    Ok(report)
}

/// Begins the streams of the model's own dropout anew.
fn seed_dropout<M: Injectable + ?Sized>(model: &mut M, seed: u64) {
    for (path, leaf) in leaves_mut(model) {
        if let LeafMut::Plain(layer) = leaf
            && let Some(dropout) = layer.as_dropout_mut()
        {
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
    made: Vec<Made>,
    trainable: bool,
) -> Result<InjectionReport> {
    let active = leaves(model)
        .iter()
        .any(|(_, leaf)| leaf.stack().is_some_and(|stack| stack.active().contains(&plan.adapter)));
    // The one before may have trained biases of the base model.
    freeze(model)?;
    let places = leaves_mut(model).into_iter().map(|(_, leaf)| match leaf {
        LeafMut::Adapted(layer) => layer.stack_mut().and_then(|stack| stack.take(&plan.adapter)),
        LeafMut::Plain(_) => None,
    });
    let places: Vec<Option<usize>> = places.collect();
    let report = commit(model, plan, made, trainable)?;
    for ((_, leaf), place) in leaves_mut(model).into_iter().zip(places) {
        let LeafMut::Adapted(layer) = leaf else { continue };
        let Some(stack) = layer.stack_mut() else { continue };
        if let Some(place) = place {
            stack.move_last_to(&plan.adapter, place);
        }
        if stack.slots().is_empty() {
            layer.drop_stack(false);
        }
    }
    Ok(InjectionReport { active, ..report })
}

fn put(
    layer: &mut dyn AdaptedLayer,
    path: &ModulePath,
    plan: &Plan,
    content: Content,
    state: &AdapterStack,
    trainable: bool,
) {
    layer.ensure_stack(state.clone());
    if let Some(stack) = layer.stack_mut() {
        let dropout = DropoutStream::new(plan.method.seed(), format!("{}/{path}/dropout", plan.adapter));
        let (name, method) = (plan.adapter.clone(), Arc::clone(&plan.method));
        stack.push(Slot { name, method, content, trainable, dropout });
    }
}

/// Takes the base model's parameters out of any graph, so that none of them is a variable any more.
fn freeze<M: Injectable + ?Sized>(model: &mut M) -> Result<()> {
    for (path, leaf) in leaves_mut(model) {
        let mut detach = |_: &'static str, own: &Tensor| Ok(own.detach());
        match leaf {
            LeafMut::Adapted(layer) if layer.parameters().iter().any(|(_, own)| own.track_op()) => {
                layer.map_parameters(&mut detach)
            }
            LeafMut::Plain(layer) if layer.parameters().iter().any(|(_, own)| own.track_op()) => {
                layer.map_parameters(&mut detach)
            }
            LeafMut::Adapted(_) | LeafMut::Plain(_) => Ok(()),
        }
        .map_err(|error| match error {
            Error::Candle(source) => Error::on_layer(&path)(source),
            other => other,
        })?;
    }
    Ok(())
}

/// What is active, enabled and training in the model, without any adapters; `None` if it has none.
pub(crate) fn stack_state(leaves: &[(ModulePath, Leaf<'_>)]) -> Option<AdapterStack> {
    let stack = leaves.iter().find_map(|(_, leaf)| leaf.stack())?;
    Some(AdapterStack::new(stack.active().to_vec(), stack.enabled(), stack.training()))
}
