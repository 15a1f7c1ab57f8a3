//! Weighted combinations: a new adapter out of several.

use candle_core::{Device, Tensor};

use super::{check_known, method_of};
use crate::adapter::{AdapterMethod, Combination, Combined, CombinedLayer, Part, Site, TrainableTokens};
use crate::config::CombineOptions;
use crate::error::{Error, Result};
use crate::inject::{InjectionReport, Origin, Plan, TokenPlan, commit, make_from_memory};
use crate::layer::Slot;
use crate::module::{Injectable, Leaf, leaves};
use crate::select::TargetModules;

/// Adds the adapter `name`, the sum of `adapters` each times its weight.
pub(crate) fn add_weighted_adapter<M: Injectable + ?Sized>(
    model: &mut M,
    adapters: &[(&str, f64)],
    name: &str,
    options: &CombineOptions,
) -> Result<InjectionReport> {
    options.check()?;
    check_parts(model, adapters)?;
    let Combined { method, mut tensors } = combine(model, adapters, options)?;
    let plan = plan_sum(model, adapters, method.as_ref(), name)?;
    // Modules that train in full start again from the base model's, as in PEFT.
    for (path, leaf) in leaves(model).iter().filter(|(path, _)| plan.copied.contains(path)) {
        for (parameter, own) in leaf.parameters() {
            tensors.insert(path.parameter(parameter), own.detach());
        }
    }
    for (path, leaf) in leaves(model) {
        let (Leaf::Adapted(layer), Some(TokenPlan::Own(tokens))) = (leaf, plan.tokens.get(&path)) else {
            continue;
        };
        let index = Tensor::new(tokens.as_slice(), &Device::Cpu)?;
        let weight = layer.dense_weight()?;
        let rows = weight.index_select(&index.to_device(weight.device())?, 0)?;
        tensors.insert(path.parameter(TrainableTokens::KEY), rows);
    }
    let made = make_from_memory(model, &plan, &tensors)?;
    commit(model, &plan, made, false)
}

/// The plan for the layers of the adapters and no others: a name in one config may be the end of another's path.
fn plan_sum<M: Injectable + ?Sized>(
    model: &M,
    adapters: &[(&str, f64)],
    method: &dyn AdapterMethod,
    name: &str,
) -> Result<Plan> {
    let plan = Plan::new(model, method, name, Origin::File)?;
    let all = leaves(model);
    let carries = |leaf: &Leaf<'_>| {
        let slot = |name: &str| leaf.stack().and_then(|stack| stack.slot(name)?.adapter());
        adapters.iter().any(|(name, _)| slot(name).is_some())
    };
    let adapted: Vec<&str> =
        all.iter().filter(|(_, leaf)| carries(leaf)).map(|(path, _)| path.as_str()).collect();
    if plan.adapted.iter().all(|path| adapted.contains(&path.as_str())) {
        return Ok(plan);
    }
    Plan::new(model, method.resolved(TargetModules::exactly(adapted), false).as_ref(), name, Origin::File)
}

/// Refuses adapters that are unknown, weights that are no numbers, and copies of one module that exclude each other.
fn check_parts<M: Injectable + ?Sized>(model: &M, adapters: &[(&str, f64)]) -> Result<()> {
    let all = leaves(model);
    let names: Vec<&str> = adapters.iter().map(|(name, _)| *name).collect();
    check_known(&all, &names)?;
    if names.is_empty() {
        return Err(Error::Config { field: "adapters", reason: "there is none to combine".to_owned() });
    }
    if let Some((name, weight)) = adapters.iter().find(|(_, weight)| !weight.is_finite()) {
        let reason = format!("that of `{name}` is {weight}, which is not a finite number");
        return Err(Error::Config { field: "weights", reason });
    }
    for (path, leaf) in &all {
        let Some(stack) = leaf.stack() else { continue };
        let owns_copy = |name: &&&str| stack.slot(name).is_some_and(|slot| slot.copy().is_some());
        let owners: Vec<String> = names.iter().filter(owns_copy).map(|name| (*name).to_owned()).collect();
        if owners.len() > 1 {
            return Err(Error::CopiesCollide { path: path.clone(), adapters: owners });
        }
    }
    Ok(())
}

fn combine<M: Injectable + ?Sized>(
    model: &M,
    adapters: &[(&str, f64)],
    options: &CombineOptions,
) -> Result<Combined> {
    let methods = adapters.iter().map(|(name, _)| method_of(model, name)).collect::<Result<Vec<_>>>()?;
    let parts: Vec<Part<'_>> = adapters
        .iter()
        .zip(&methods)
        .map(|((name, weight), method)| Part { name, weight: *weight, method: method.as_ref() })
        .collect();
    let Some(first) = methods.first() else {
        return Err(Error::Config { field: "adapters", reason: "there is none to combine".to_owned() });
    };
    let all = leaves(model);
    // What a site borrows has to outlive it.
    let facts: Vec<_> = all
        .iter()
        .filter_map(|(path, leaf)| match leaf {
            Leaf::Adapted(layer) => {
                Some((path, *layer, layer.geometry(), layer.dtype_and_device(), || layer.dense_weight()))
            }
            Leaf::Plain(_) => None,
        })
        .collect();
    let layers = facts.iter().filter_map(|(path, layer, geometry, (dtype, device), weight)| {
        let stack = layer.stack()?;
        let state = |part: &Part<'_>| stack.slot(part.name).and_then(Slot::adapter).map(AsRef::as_ref);
        let adapters: Vec<_> = parts.iter().map(state).collect();
        let site = Site { path, kind: layer.kind(), geometry, dtype: *dtype, device, bias: None, weight };
        adapters.iter().any(Option::is_some).then_some(CombinedLayer { site, adapters })
    });
    let request = Combination { layers: layers.collect(), parts: parts.clone(), options };
    first.combine(&request)
}
