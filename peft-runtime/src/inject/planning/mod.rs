//! Planning an injection: model × config → what each layer gets, or every fault at once. Pure.

mod copies;
mod declarations;
mod layers;
mod outcome;
mod parameters;
mod patterns;
mod planner;
mod replication;
mod tie;
mod tokens;
mod tying;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::name_fault;
use super::plan::{Origin, Plan};
use crate::adapter::{AdapterMethod, Selection};
use crate::config::Bias;
use crate::error::{Error, Fault, Result};
use crate::layer::AdapterStack;
use crate::module::{Injectable, Item, leaves, replicated_tree, tree};
use crate::path::ModulePath;
use crate::select::{LayerFilter, Selector, TargetModules, proper_suffixes};
use declarations::Declarations;
use planner::Planner;
use tie::Tie;

pub(crate) use parameters::stored_paths;

/// Plans the injection of `method` as `adapter` into the model.
pub(crate) fn plan<M: Injectable + ?Sized>(
    model: &M,
    method: &dyn AdapterMethod,
    adapter: &str,
    origin: Origin,
) -> Result<Plan> {
    let declarations = Declarations::of(model);
    let replication = replication::plan(model, method.selection().replication)
        .map_err(|fault| Error::Plan { adapter: adapter.to_owned(), faults: vec![fault] })?;
    let plan = match &replication {
        Some(order) => plan_items(&replicated_tree(model, order), declarations, method, adapter, origin)?,
        None => plan_items(&tree(model), declarations, method, adapter, origin)?,
    };
    Ok(Plan { replication, ..plan })
}

/// Plans the injection of `method` as `adapter` into the model with these items.
fn plan_items(
    items: &[Item<'_>],
    model: Declarations<'_>,
    method: &dyn AdapterMethod,
    adapter: &str,
    origin: Origin,
) -> Result<Plan> {
    let completed = method.with_declared(model.declared, model.model_type);
    let method = completed.as_deref().unwrap_or(method);
    let mut faults: Vec<Fault> = name_fault(adapter).into_iter().collect();
    let tied = Tie::find(items, &model, method, origin).unwrap_or_else(|fault| {
        faults.push(fault);
        None
    });
    let method = tied.as_ref().map_or(method, |(method, _)| method.as_ref());
    let replaced = (origin == Origin::Swap).then_some(adapter);
    faults.extend(conflicts(items, method, adapter, replaced));
    faults.extend(method.faults().into_iter().map(|(field, reason)| Fault::Config { field, reason }));
    let refuse = |faults| Err(Error::Plan { adapter: adapter.to_owned(), faults });

    let mut selection = method.selection();
    let declared_targets = model.declared.target_modules();
    let Some(targets) = selection.targets.or(declared_targets.as_ref()) else {
        faults.push(Fault::NoTargets);
        return refuse(faults);
    };
    if selection.exclude == Some(&TargetModules::AllLinear) {
        // PEFT reads it here as a regular expression, which matches nothing.
        selection.exclude = None;
        if origin == Origin::Caller {
            let reason = "`all-linear` excludes nothing in PEFT; name the modules".to_owned();
            faults.push(Fault::Config { field: "exclude_modules", reason });
        }
    }
    let selector = match selector(&selection, targets) {
        Ok(selector) => selector,
        Err(fault) => {
            faults.push(fault);
            return refuse(faults);
        }
    };
    let head = model.head(items, method.common().task_type.as_deref());
    let mut planner = Planner::new(method, origin, items, targets, selector, head, faults);
    planner.tie = tied.as_ref().map(|(_, tie)| tie.clone());
    planner.choose_layers();
    planner.choose_copies(selection.modules_to_save);
    planner.choose_tied();
    if let Some(tokens) = selection.tokens {
        planner.choose_tokens(tokens, model.declared.input_embedding, model.declared.output_embedding);
    }
    let mut unmatched_targets = planner.choose_parameters(selection.parameters);
    unmatched_targets.extend(planner.unmatched_targets());
    planner.check_outcome(&unmatched_targets);
    let unmatched_patterns = planner.unmatched_patterns(selection.exclude, model.schema);
    if !planner.faults.is_empty() {
        return refuse(planner.faults);
    }
    Ok(Plan {
        adapter: adapter.to_owned(),
        method: method.resolved(planner.resolved_targets(), planner.transposed.unwrap_or_default()),
        stored_paths: planner.stored_paths(),
        layers: planner.planned_layers(),
        unmatched_targets,
        unmatched_patterns,
        replication: None,
        autocasts: true,
    })
}

/// What decides whether a module is a target.
pub(crate) fn selector(selection: &Selection<'_>, targets: &TargetModules) -> Result<Selector, Fault> {
    let layers = LayerFilter::new(selection.layers_to_transform, selection.layers_pattern)?;
    Selector::new(targets, selection.exclude, selection.modules_to_save, layers)
}

/// Adapters of the model that rule this one out.
fn conflicts(
    items: &[Item<'_>],
    method: &dyn AdapterMethod,
    adapter: &str,
    replaced: Option<&str>,
) -> Vec<Fault> {
    let mut faults = BTreeMap::new();
    let slots = items.iter().filter_map(Item::stack).flat_map(AdapterStack::slots);
    for slot in slots.filter(|slot| Some(slot.name.as_str()) != replaced) {
        if slot.name == adapter {
            faults.insert("", Fault::DuplicateName { name: adapter.to_owned() });
        } else if method.bias() != Bias::None && slot.method.bias() != Bias::None {
            let reason = "both train biases of the base model, which exist only once".to_owned();
            faults.insert(slot.name.as_str(), Fault::Conflict { other: slot.name.clone(), reason });
        }
    }
    faults.into_values().collect()
}

/// The method with targets that match only whole paths, even if one of them is also the end of another module's path.
pub(crate) fn exactly_targeted<M: Injectable + ?Sized>(
    model: &M,
    method: Arc<dyn AdapterMethod>,
) -> Arc<dyn AdapterMethod> {
    let Some(TargetModules::Names(names)) = method.selection().targets else { return method };
    let also_means = |path: &ModulePath| {
        !names.contains(path.as_str()) && proper_suffixes(path.as_str()).any(|suffix| names.contains(suffix))
    };
    if !leaves(model).iter().any(|(path, _)| also_means(path)) {
        return method;
    }
    let exact = TargetModules::exactly(names.iter().map(String::as_str));
    method.resolved(exact, false)
}
