//! Which layers are targets, and whether the method can adapt them.

use super::planner::{Planner, is_parameter};
use crate::adapter::Geometry;
use crate::error::Fault;
use crate::inject::plan::{Origin, PlannedContent};
use crate::layer::Layer;
use crate::module::Item;
use crate::path::ModulePath;
use crate::schema::Family;
use crate::select::{Decision, TargetModules};

impl Planner<'_> {
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
                // A bare weight is a parameter, which target names do not refer to.
                Item::Leaf { layer, .. } if is_parameter(*layer) => {}
                Item::Leaf { path, layer } if layer.can_carry_adapters() => {
                    if self.decide(path, Some(layer.kind().family)) {
                        self.choose_layer(path, *layer);
                    }
                }
                Item::Leaf { path, layer } if layer.describe().is_some() => {
                    if self.decide(path, Some(layer.kind().family)) {
                        let (path, kind, can_be_adapted) =
                            (path.clone(), layer.kind().name, layer.can_be_adapted());
                        self.faults.push(Fault::PlainLayer { path, kind, can_be_adapted });
                    }
                }
                Item::Open { .. } | Item::Close | Item::Leaf { .. } => {}
            }
        }
    }

    /// Plans the adapter of a layer that is a target.
    pub(super) fn choose_layer(&mut self, path: &ModulePath, layer: &dyn Layer) {
        let geometry = layer.geometry();
        let settings = match self.method.plan_layer(path, layer.kind(), &geometry) {
            Ok(settings) => settings,
            Err(fault) => return self.note(fault),
        };
        let shape = geometry.weight_shape();
        let weights = shape.iter().product();
        if let Some(rank) = settings.rank.filter(|rank| self.origin == Origin::Caller && *rank > weights) {
            self.faults.push(Fault::RankOverDimensions { path: path.clone(), rank, weights, shape });
            return;
        }
        if let Geometry::Linear { transposed, .. } = geometry {
            self.transposed = Some(self.transposed.unwrap_or(true) && transposed);
        }
        self.contents.insert(path.clone(), PlannedContent::Adapter(settings));
    }

    /// Whether the config selects the module at `path`; `family` is that of a layer, `None` for other modules.
    fn decide(&mut self, path: &ModulePath, family: Option<Family>) -> bool {
        if path.is_root() {
            return false;
        }
        if *self.targets == TargetModules::AllLinear && self.head.as_ref() == Some(path) {
            self.unmatched += 1;
            return false;
        }
        if self.tie.as_ref().is_some_and(|tie| tie.adapts(path)) {
            return false;
        }
        match self.selector.decide(path.as_str(), family) {
            Ok(Decision::Target) => return true,
            Ok(Decision::Excluded) => self.excluded += 1,
            Ok(Decision::Unmatched) => self.unmatched += 1,
            Err(fault) => self.note(fault),
        }
        false
    }
}
