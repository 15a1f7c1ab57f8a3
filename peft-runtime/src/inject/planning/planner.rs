//! What has been decided so far in a walk over a model, and every fault found.

use std::collections::BTreeMap;

use super::tie::Tie;
use crate::adapter::AdapterMethod;
use crate::config::Bias;
use crate::error::Fault;
use crate::inject::plan::{Origin, PlannedContent, PlannedLayer};
use crate::layer::Layer;
use crate::module::Item;
use crate::path::ModulePath;
use crate::schema::Family;
use crate::select::{Selector, TargetModules};

/// Gathers the plan and the faults.
pub(super) struct Planner<'a> {
    pub(super) method: &'a dyn AdapterMethod,
    pub(super) origin: Origin,
    pub(super) items: &'a [Item<'a>],
    pub(super) targets: &'a TargetModules,
    /// The layer that `all-linear` leaves out.
    pub(super) head: Option<ModulePath>,
    /// The output layer that gets what the embedding gets.
    pub(super) tie: Option<Tie>,
    pub(super) selector: Selector,
    pub(super) faults: Vec<Fault>,
    /// What layers get.
    pub(super) contents: BTreeMap<ModulePath, PlannedContent>,
    /// Whether all linear layers so far store their weights transposed.
    pub(super) transposed: Option<bool>,
    /// How many modules the config rules out, and how many it does not select.
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
            tie: None,
            selector,
            faults,
            contents: BTreeMap::new(),
            transposed: None,
            excluded: 0,
            unmatched: 0,
        }
    }

    /// Records a fault, unless it is already recorded: the same pattern fails on many paths.
    pub(super) fn note(&mut self, fault: Fault) {
        let is_same = |known: &Fault| match (known, &fault) {
            (Fault::Pattern { pattern: a, .. }, Fault::Pattern { pattern: b, .. }) => a == b,
            _ => *known == fault,
        };
        if !self.faults.iter().any(is_same) {
            self.faults.push(fault);
        }
    }

    /// The layers that can carry adapters, in model order.
    pub(super) fn carriers(&self) -> impl Iterator<Item = (&'a ModulePath, &'a dyn Layer)> + use<'a> {
        self.items.iter().filter_map(Item::leaf).filter(|(_, layer)| layer.can_carry_adapters())
    }

    /// Whether the layer at `path` gets an adapter of the method, its own or another layer's.
    pub(super) fn is_adapted(&self, path: &ModulePath) -> bool {
        matches!(self.contents.get(path), Some(PlannedContent::Adapter(_) | PlannedContent::TiedAdapter(..)))
    }

    /// What layers get, with the biases that train as well.
    pub(super) fn planned_layers(self) -> BTreeMap<ModulePath, PlannedLayer> {
        let bias = self.method.bias();
        let mut planned: BTreeMap<ModulePath, PlannedLayer> = BTreeMap::new();
        for (path, layer) in self.items.iter().filter_map(Item::leaf) {
            let adapts = self.contents.get(path).is_some_and(PlannedContent::adapts);
            let chosen = bias == Bias::All || bias == Bias::LoraOnly && adapts;
            if chosen && layer.parameters().iter().any(|(name, _)| *name == "bias") {
                planned.entry(path.clone()).or_default().trains_bias = true;
            }
        }
        for (path, content) in self.contents {
            planned.entry(path).or_default().content = Some(content);
        }
        planned
    }
}

/// Whether the layer is a bare parameter that can carry adapters.
pub(super) fn is_parameter(layer: &dyn Layer) -> bool {
    layer.can_carry_adapters() && layer.kind().family == Family::Parameter
}
