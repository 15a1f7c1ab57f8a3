//! Weighted combinations: a new adapter made from several.

use super::{check_known, method_of};
use crate::adapter::{AdapterMethod, Combination, CombinationPart, Combined, CombinedLayer, Site};
use crate::config::CombineOptions;
use crate::error::{CombinationError, Error, Result};
use crate::inject::{InjectionReport, Origin, Plan, commit, make_from_memory, plan};
use crate::layer::{CopiedParameter, Layer, Slot};
use crate::module::{Injectable, leaves};
use crate::select::TargetModules;

/// Adds the adapter `name`, the sum of `adapters`, each multiplied by its weight.
pub(crate) fn add_weighted_adapter<M: Injectable + ?Sized>(
    model: &mut M,
    adapters: &[(&str, f64)],
    name: &str,
    options: &CombineOptions,
) -> Result<InjectionReport> {
    options.check()?;
    check_parts(model, adapters, options)?;
    let Combined { method, mut tensors } = combine(model, adapters, options)?;
    let plan = plan_sum(model, adapters, method.as_ref(), name)?;
    for (path, leaf) in leaves(model).iter().filter(|(path, _)| plan.copies(path)) {
        let copy = owner_of_copy(*leaf, adapters).filter(|_| !options.restarts);
        let copied = |name: &str| copy.and_then(|(_, copies)| copies.iter().find(|copy| copy.name == name));
        for (name, own) in leaf.parameters() {
            let value = copied(name).map_or_else(|| own.detach(), |copy| copy.var.as_detached_tensor());
            tensors.insert(path.parameter(name), value);
        }
    }
    let changes = make_from_memory(model, &plan, &tensors)?;
    commit(model, &plan, changes, false)
}

/// Which of the adapters has a full copy of the layer, and the copy.
fn owner_of_copy<'m>(
    leaf: &'m dyn Layer,
    adapters: &[(&'m str, f64)],
) -> Option<(&'m str, &'m [CopiedParameter])> {
    let stack = leaf.stack()?;
    adapters.iter().find_map(|(name, _)| Some((*name, stack.slot(name)?.copy()?)))
}

/// The plan for the layers of the adapters and no others: a name in one config may be the end of another's path.
fn plan_sum<M: Injectable + ?Sized>(
    model: &M,
    adapters: &[(&str, f64)],
    method: &dyn AdapterMethod,
    name: &str,
) -> Result<Plan> {
    let planned = plan(model, method, name, Origin::File)?;
    let all = leaves(model);
    let carries = |leaf: &dyn Layer| {
        let slot = |name: &str| leaf.stack().and_then(|stack| stack.slot(name)?.adapter());
        adapters.iter().any(|(name, _)| slot(name).is_some())
    };
    let adapted: Vec<&str> =
        all.iter().filter(|(_, leaf)| carries(*leaf)).map(|(path, _)| path.as_str()).collect();
    if planned.adapted().all(|path| adapted.contains(&path.as_str())) {
        return Ok(planned);
    }
    plan(model, method.resolved(TargetModules::exactly(adapted), false).as_ref(), name, Origin::File)
}

/// Refuses adapters that are unknown, weights that are not numbers, and copies of one module that exclude each other.
fn check_parts<M: Injectable + ?Sized>(
    model: &M,
    adapters: &[(&str, f64)],
    options: &CombineOptions,
) -> Result<()> {
    let all = leaves(model);
    let names: Vec<&str> = adapters.iter().map(|(name, _)| *name).collect();
    check_known(&all, &names)?;
    if names.is_empty() {
        return Err(CombinationError::NoParts.into());
    }
    if let Some((name, weight)) = adapters.iter().find(|(_, weight)| !weight.is_finite()) {
        return Err(CombinationError::Weight { adapter: (*name).to_owned(), weight: *weight }.into());
    }
    for (path, leaf) in &all {
        let Some(stack) = leaf.stack() else { continue };
        let owns_copy = |name: &&&str| stack.slot(name).is_some_and(|slot| slot.copy().is_some());
        let owners: Vec<String> = names.iter().filter(owns_copy).map(|name| (*name).to_owned()).collect();
        if owners.len() > 1 {
            return Err(Error::CopiesCollide { path: path.clone(), adapters: owners });
        }
        if options.restarts {
            continue;
        }
        let adapts = |name: &&&str| stack.slot(name).is_some_and(|slot| slot.adapter().is_some());
        if let (Some(owner), Some(name)) = (owners.first(), names.iter().find(adapts)) {
            let reason =
                format!("it adapts `{path}`, of which `{owner}` has a full copy: a sum has only one of them");
            let adapter = (*name).to_owned();
            return Err(Error::Unsupported { operation: "combine", adapter, reason });
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
    let parts: Vec<CombinationPart<'_>> = adapters
        .iter()
        .zip(&methods)
        .map(|((name, weight), method)| CombinationPart { name, weight: *weight, method: method.as_ref() })
        .collect();
    let Some(first) = methods.first() else {
        return Err(CombinationError::NoParts.into());
    };
    let all = leaves(model);
    // What a site borrows has to outlive it.
    let carriers: Vec<_> = all
        .iter()
        .filter(|(_, layer)| layer.can_carry_adapters())
        .map(|(path, layer)| {
            (path, *layer, layer.geometry(), layer.dtype_and_device(), || layer.dense_weight())
        })
        .collect();
    let layers = carriers.iter().filter_map(|(path, layer, geometry, (dtype, device), weight)| {
        let stack = layer.stack()?;
        let state =
            |part: &CombinationPart<'_>| stack.slot(part.name).and_then(Slot::adapter).map(AsRef::as_ref);
        let adapters: Vec<_> = parts.iter().map(state).collect();
        let (kind, dtype) = (layer.kind(), *dtype);
        let site = Site { path, kind, geometry, dtype, device, bias: None, autocasts: true, weight };
        adapters.iter().any(Option::is_some).then_some(CombinedLayer { site, adapters })
    });
    let request = Combination { layers: layers.collect(), parts: parts.clone(), options };
    first.combine(&request)
}
