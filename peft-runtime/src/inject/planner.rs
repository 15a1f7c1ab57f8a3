//! The walk over a model that decides for each layer what it gets, and gathers every fault.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::Origin;
use super::reach::TokenPlan;
use crate::ModulePath;
use crate::adapter::{AdapterMethod, Geometry};
use crate::config::Bias;
use crate::error::Fault;
use crate::layer::AdaptedLayer;
use crate::module::{Item, Leaf, PlainLayer};
use crate::schema::{Family, Node, nearest_names};
use crate::select::{Decision, Selector, TargetModules, proper_suffixes};

/// Gathers the plan and the faults on one walk over the model.
pub(super) struct Planner<'a> {
    pub(super) method: &'a dyn AdapterMethod,
    pub(super) origin: Origin,
    pub(super) items: &'a [Item<'a>],
    pub(super) targets: &'a TargetModules,
    /// The layer that `all-linear` does not mean.
    pub(super) head: Option<ModulePath>,
    pub(super) selector: Selector,
    pub(super) faults: Vec<Fault>,
    pub(super) adapted: BTreeSet<ModulePath>,
    pub(super) copied: BTreeSet<ModulePath>,
    /// Of the adapted layers, those of which single rows train.
    pub(super) tokens: BTreeMap<ModulePath, TokenPlan>,
    pub(super) transposed: Option<bool>,
    pub(super) excluded: usize,
    pub(super) unmatched: usize,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        method: &'a dyn AdapterMethod,
        origin: Origin,
        items: &'a [Item<'a>],
        targets: &'a TargetModules,
        selector: Selector,
        head: Option<ModulePath>,
        faults: Vec<Fault>,
    ) -> Self {
        Self {
            method,
            origin,
            items,
            targets,
            head,
            selector,
            faults,
            adapted: BTreeSet::new(),
            copied: BTreeSet::new(),
            tokens: BTreeMap::new(),
            transposed: None,
            excluded: 0,
            unmatched: 0,
        }
    }

    fn decide(&mut self, path: &ModulePath, family: Option<Family>) -> bool {
        if path.is_root() {
            return false;
        }
        if *self.targets == TargetModules::AllLinear && self.head.as_ref() == Some(path) {
            self.unmatched += 1;
            return false;
        }
        match self.selector.decide(path.as_str(), family) {
            Ok(Decision::Target) => return true,
            Ok(Decision::Excluded) => self.excluded += 1,
            Ok(Decision::Unmatched) => self.unmatched += 1,
            // The same pattern fails on many paths: one fault says it.
            Err(fault) if !self.faults.iter().any(|known| same_pattern(known, &fault)) => {
                self.faults.push(fault);
            }
            Err(_) => {}
        }
        false
    }

    /// Decides for every module and layer whether it is a target, and whether the method can adapt it.
    pub(super) fn choose_layers(&mut self) {
        let items = self.items;
        for item in items {
            match item {
                Item::Open { path, schema } if self.decide(path, None) => {
                    let reason = "it is a module, not a layer".to_owned();
                    let (path, kind, method) = (path.clone(), schema.name(), self.method.peft_type());
                    self.faults.push(Fault::UnsupportedLayer { path, kind, method, reason });
                }
                // A bare weight is a parameter, which target names do not mean.
                Item::Leaf { leaf: Leaf::Adapted(layer), .. } if is_parameter(*layer) => {}
                Item::Leaf { path, leaf: Leaf::Adapted(layer) } => {
                    if self.decide(path, Some(layer.kind().family)) {
                        self.choose_layer(path, *layer);
                    }
                }
                Item::Leaf { path, leaf: Leaf::Plain(layer) } if layer.describe().is_some() => {
                    if self.decide(path, Some(layer.family())) {
                        let (path, kind, can_be_adapted) =
                            (path.clone(), layer.type_name(), layer.can_be_adapted());
                        self.faults.push(Fault::PlainLayer { path, kind, can_be_adapted });
                    }
                }
                Item::Open { .. } | Item::Close | Item::Leaf { .. } => {}
            }
        }
    }

    pub(super) fn choose_layer(&mut self, path: &ModulePath, layer: &dyn AdaptedLayer) {
        let geometry = layer.geometry();
        if let Some(fault) = self.method.check(path, layer.kind(), &geometry) {
            if !self.faults.iter().any(|known| same_pattern(known, &fault)) {
                self.faults.push(fault);
            }
            return;
        }
        let shape = geometry.weight_shape();
        let weights = shape.iter().product();
        if let Some(rank) =
            self.method.rank(path).filter(|rank| self.origin == Origin::Caller && *rank > weights)
        {
            self.faults.push(Fault::RankOverDimensions { path: path.clone(), rank, weights, shape });
            return;
        }
        if let Geometry::Linear { transposed, .. } = geometry {
            self.transposed = Some(self.transposed.unwrap_or(true) && transposed);
        }
        self.adapted.insert(path.clone());
    }

    /// Finds the layers below the modules that train in full; entries match the ends of paths as plain text.
    pub(super) fn choose_copies(&mut self, modules_to_save: &[String]) {
        for entry in modules_to_save {
            let (mut matched, mut trains) = (false, false);
            let items = self.items;
            for item in items {
                let Some(path) =
                    item.path().filter(|path| !path.is_root() && path.as_str().ends_with(entry.as_str()))
                else {
                    continue;
                };
                if matches!(item, Item::Leaf { leaf: Leaf::Adapted(layer), .. } if is_parameter(*layer)) {
                    continue;
                }
                matched = true;
                if let Item::Open { schema, .. } = item
                    && matches!(schema.node(), Node::List(_) | Node::Map(_))
                {
                    let reason = "a list of modules; name its items instead".to_owned();
                    self.faults.push(Fault::ModuleToSave { path: path.clone(), reason });
                    trains = true;
                    continue;
                }
                trains |= self.copy_below(path);
            }
            if matched && !trains && self.origin == Origin::Caller {
                let reason = "which has nothing to train".to_owned();
                self.faults.push(Fault::ModuleToSave { path: entry.as_str().into(), reason });
            }
            if !matched && self.origin == Origin::Caller {
                let nearest = nearest_names(entry, items.iter().filter_map(Item::path).map(ModulePath::last));
                let reason = match nearest.first() {
                    Some(name) => format!("which matches no module; did you mean `{name}`?"),
                    None => "which matches no module".to_owned(),
                };
                self.faults.push(Fault::ModuleToSave { path: entry.as_str().into(), reason });
            }
        }
    }

    /// Marks every layer at or below `root` as copied; the answer is whether any of them has parameters.
    fn copy_below(&mut self, root: &ModulePath) -> bool {
        let items = self.items;
        let mut any = false;
        let below = |path: &ModulePath| {
            path == root
                || path.as_str().strip_prefix(root.as_str()).is_some_and(|rest| rest.starts_with('.'))
        };
        for item in items {
            match item {
                Item::Leaf { path, leaf: Leaf::Adapted(layer) } if below(path) => {
                    any = true;
                    if self.adapted.contains(path) {
                        let reason = "which is also a target".to_owned();
                        self.faults.push(Fault::ModuleToSave { path: path.clone(), reason });
                    }
                    if layer.quantized_weight().is_some() {
                        let reason =
                            "whose quantized weight cannot be trained; make the layer dense first".to_owned();
                        self.faults.push(Fault::ModuleToSave { path: path.clone(), reason });
                    }
                    self.copied.insert(path.clone());
                }
                // A layer without parameters is its own copy.
                Item::Leaf { leaf: Leaf::Plain(layer), .. } if has_no_parameters(*layer) => {}
                Item::Leaf { path, leaf: Leaf::Plain(layer) } if below(path) => {
                    any = true;
                    let kind = layer.type_name();
                    let reason = match layer.can_be_adapted() {
                        true => format!(
                            "a plain `{kind}` that has no place for a copy; declare it as `Adapted<{kind}>`"
                        ),
                        false => format!("a plain `{kind}`, which cannot be trained as a copy"),
                    };
                    let fault = Fault::ModuleToSave { path: path.clone(), reason };
                    if !self.faults.contains(&fault) {
                        self.faults.push(fault);
                    }
                }
                Item::Open { .. } | Item::Close | Item::Leaf { .. } => {}
            }
        }
        any
    }

    /// Names in a list of targets that are the end of no path.
    pub(super) fn unmatched_targets(&self) -> Vec<String> {
        let TargetModules::Names(names) = self.targets else { return Vec::new() };
        let mut unmatched = names.clone();
        for path in self.items.iter().filter_map(Item::path) {
            unmatched.remove(path.as_str());
            for suffix in proper_suffixes(path.as_str()) {
                unmatched.remove(suffix);
            }
        }
        unmatched.into_iter().collect()
    }

    /// Refuses a selection that names nothing, or, from the caller, names something that does not exist.
    pub(super) fn check_outcome(&mut self, unmatched_targets: &[String]) {
        let nothing = self.adapted.is_empty();
        if self.origin == Origin::Caller || nothing {
            for target in unmatched_targets {
                let nearest = nearest_names(target, self.layer_names(target).iter().map(String::as_str));
                self.faults.push(Fault::UnmatchedTarget { target: target.clone(), nearest });
            }
        }
        if nothing && self.faults.is_empty() {
            let targets = self.targets;
            let filters = self.method.selection().describe_filters();
            let reason = match (self.excluded, self.unmatched) {
                _ if targets.is_empty() => "the list of targets is empty".to_owned(),
                (1.., 0) => format!("every module is ruled out by {filters}"),
                (0, _) if filters.is_empty() => format!("no module matches {targets}"),
                (_, _) => format!("no module matches {targets} together with {filters}"),
            };
            self.faults.push(Fault::NothingMatched { reason });
        }
    }

    /// The ends of layer paths that have as many segments as `target`.
    fn layer_names(&self, target: &str) -> BTreeSet<String> {
        let segments = target.split('.').count();
        let layers = self.items.iter().filter_map(|item| match item {
            Item::Leaf { path, leaf: Leaf::Adapted(_) } => Some(path),
            _ => None,
        });
        layers
            .map(|path| {
                let all: Vec<&str> = path.segments().collect();
                all[all.len().saturating_sub(segments)..].join(".")
            })
            .collect()
    }

    /// The layers whose bias trains along.
    pub(super) fn biases(&self) -> BTreeSet<ModulePath> {
        let chosen = |path: &ModulePath| match self.method.bias() {
            Bias::None => false,
            Bias::All => true,
            Bias::LoraOnly => self.adapted.contains(path),
        };
        let leaves = self.items.iter().filter_map(Item::leaf);
        leaves
            .filter(|(path, leaf)| chosen(path) && leaf.parameters().iter().any(|(name, _)| *name == "bias"))
            .map(|(path, _)| path.clone())
            .collect()
    }

    /// The targets as they are saved: `all-linear` becomes the names it stood for.
    pub(super) fn resolved_targets(&self) -> TargetModules {
        match self.targets {
            TargetModules::AllLinear => {
                let others =
                    self.items.iter().filter_map(Item::path).filter(|path| !self.adapted.contains(path));
                TargetModules::Names(shortest_names(&self.adapted, &others.collect::<Vec<_>>()))
            }
            targets => targets.clone(),
        }
    }
}

/// How many names a list may have before it is shortened.
const LONG_LIST: usize = 20;

/// The shortest ends of paths that name the same modules and none of the others.
fn shortest_names(paths: &BTreeSet<ModulePath>, others: &[&ModulePath]) -> BTreeSet<String> {
    let full: BTreeSet<String> = paths.iter().map(|path| path.as_str().to_owned()).collect();
    if full.len() < LONG_LIST {
        return full;
    }
    let mut names: BTreeSet<String> = BTreeSet::new();
    for path in &full {
        let suffixes: Vec<&str> = proper_suffixes(path).collect();
        if suffixes.iter().any(|suffix| names.contains(*suffix)) {
            continue;
        }
        let shortest =
            suffixes.into_iter().rev().find(|suffix| !others.iter().any(|other| other.ends_with(suffix)));
        names.insert(shortest.unwrap_or(path).to_owned());
    }
    names
}

fn same_pattern(a: &Fault, b: &Fault) -> bool {
    match (a, b) {
        (Fault::Pattern { pattern: a, .. }, Fault::Pattern { pattern: b, .. }) => a == b,
        _ => a == b,
    }
}

fn has_no_parameters(layer: &dyn PlainLayer) -> bool {
    layer.parameters().is_empty() && layer.quantized_weight().is_none()
}

pub(super) fn is_parameter(layer: &dyn AdaptedLayer) -> bool {
    layer.kind().family == Family::Parameter
}
