//! The plan of an injection: model × config → which layer gets what, or every fault at once. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::facts::ModelFacts;
use super::planner::{Planner, is_parameter};
use super::reach::{TokenPlan, stored_paths};
use super::replication;
use crate::ModulePath;
use crate::adapter::{AdapterMethod, Selection};
use crate::config::Bias;
use crate::error::{Error, Fault, Result};
use crate::layer::AdapterStack;
use crate::module::{Injectable, Item, Leaf, replicated_tree, tree};
use crate::select::{LayerFilter, Selector, TargetModules};

/// Where a config comes from, which decides how strictly it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Written by the caller: a name that matches nothing is a slip.
    Caller,
    /// Read from a file: shared configs name modules that not every model has.
    File,
    /// Read from a file, to take the place of the adapter of that name.
    Swap,
}

/// What an injection will do.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) adapter: String,
    pub(crate) method: Arc<dyn AdapterMethod>,
    /// The layers that get an adapter.
    pub(crate) adapted: BTreeSet<ModulePath>,
    /// The layers of which the adapter gets a copy.
    pub(crate) copied: BTreeSet<ModulePath>,
    /// The layers whose bias trains along.
    pub(crate) biases: BTreeSet<ModulePath>,
    pub(crate) unmatched_targets: Vec<String>,
    /// Of the adapted layers, those of which single rows train.
    pub(crate) tokens: BTreeMap<ModulePath, TokenPlan>,
    /// Where files have the adapters of bare parameters.
    pub(crate) stored_paths: BTreeMap<ModulePath, ModulePath>,
    /// The blocks that the model gets first, by their numbers in the present list.
    pub(crate) replication: Option<Vec<usize>>,
}

impl Plan {
    /// Plans to inject `method` as `adapter` into the model.
    pub(crate) fn new<M: Injectable + ?Sized>(
        model: &M,
        method: &dyn AdapterMethod,
        adapter: &str,
        origin: Origin,
    ) -> Result<Self> {
        let facts = ModelFacts::of(model);
        let replication = replication::plan(model, method.selection().replication)
            .map_err(|fault| Error::Plan { adapter: adapter.to_owned(), faults: vec![fault] })?;
        let plan = match &replication {
            Some(order) => Self::of_items(&replicated_tree(model, order), facts, method, adapter, origin)?,
            None => Self::of_items(&tree(model), facts, method, adapter, origin)?,
        };
        Ok(Self { replication, ..plan })
    }

    /// Plans to inject `method` as `adapter` into the model with these items.
    fn of_items(
        items: &[Item<'_>],
        model: ModelFacts<'_>,
        method: &dyn AdapterMethod,
        adapter: &str,
        origin: Origin,
    ) -> Result<Self> {
        let completed = method.with_declared(model.declared, model.model_type);
        let method = completed.as_deref().unwrap_or(method);
        let mut faults: Vec<Fault> = name_fault(adapter).into_iter().collect();
        let replaced = (origin == Origin::Swap).then_some(adapter);
        faults.extend(conflicts(items, method, adapter, replaced));
        faults.extend(method.faults().into_iter().map(|(field, reason)| Fault::Config { field, reason }));
        let refuse = |faults| Err(Error::Plan { adapter: adapter.to_owned(), faults });

        let selection = method.selection();
        let declared_targets = model.declared.target_modules();
        let Some(targets) = selection.targets.or(declared_targets.as_ref()) else {
            faults.push(Fault::NoTargets);
            return refuse(faults);
        };
        let mut selection = selection;
        if selection.exclude == Some(&TargetModules::AllLinear) {
            // PEFT reads it as a regular expression there, which matches nothing.
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
        let head = model.head(items, method.common().and_then(|common| common.task_type.as_deref()));
        let mut planner = Planner::new(method, origin, items, targets, selector, head, faults);
        planner.choose_layers();
        planner.choose_copies(selection.modules_to_save);
        if let Some(tokens) = selection.tokens {
            planner.choose_tokens(tokens, model.declared.input_embedding, model.declared.output_embedding);
        }
        let mut unmatched_targets = planner.choose_parameters(selection.parameters);
        unmatched_targets.extend(planner.unmatched_targets());
        planner.check_outcome(&unmatched_targets);
        if !planner.faults.is_empty() {
            return refuse(planner.faults);
        }
        let biases = planner.biases();
        let resolved = planner.resolved_targets();
        let method = method.resolved(resolved, planner.transposed.unwrap_or_default());
        let Planner { adapted, copied, tokens, .. } = planner;
        let stored_paths = stored_paths(parameters(items).filter(|path| adapted.contains(*path)));
        let adapter = adapter.to_owned();
        let replication = None;
        Ok(Self {
            adapter,
            method,
            adapted,
            copied,
            biases,
            unmatched_targets,
            tokens,
            stored_paths,
            replication,
        })
    }
}

impl Plan {
    /// Where files have the adapter of the layer at `path`.
    pub(crate) fn stored_path<'p>(&'p self, path: &'p ModulePath) -> &'p ModulePath {
        self.stored_paths.get(path).unwrap_or(path)
    }

    /// The last part of the key under which the bias of the base layer at `path` is stored.
    pub(crate) fn bias_key(&self, path: &ModulePath) -> &'static str {
        if self.adapted.contains(path) {
            "base_layer.bias"
        } else if self.copied.contains(path) {
            "original_module.bias"
        } else {
            "bias"
        }
    }
}

/// The bare parameters that can carry adapters.
fn parameters<'i>(items: &'i [Item<'_>]) -> impl Iterator<Item = &'i ModulePath> {
    items.iter().filter_map(|item| match item {
        Item::Leaf { path, leaf: Leaf::Adapted(layer) } if is_parameter(*layer) => Some(path),
        _ => None,
    })
}

/// What decides whether a module is a target.
pub(crate) fn selector(
    selection: &Selection<'_>,
    targets: &TargetModules,
) -> std::result::Result<Selector, Fault> {
    let layers = LayerFilter::new(selection.layers_to_transform, selection.layers_pattern)?;
    Selector::new(targets, selection.exclude, selection.modules_to_save, layers)
}

/// Why a name cannot be an adapter's: it is part of keys, and the name of a folder.
pub(crate) fn name_fault(name: &str) -> Option<Fault> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.contains('.') {
        "dots separate the parts of a tensor's key"
    } else if name.contains(['/', '\\', ':']) || name.chars().any(char::is_control) {
        "it is also the name of a folder"
    } else if name == crate::layer::BASE_ROW {
        "it stands for rows without an adapter"
    } else if name.len() > 128 {
        "it is longer than 128 bytes"
    } else {
        return None;
    };
    Some(Fault::Name { name: name.to_owned(), reason })
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
            let reason = "both train biases of the base model, which exist once".to_owned();
            faults.insert(slot.name.as_str(), Fault::Conflict { other: slot.name.clone(), reason });
        }
    }
    faults.into_values().collect()
}
