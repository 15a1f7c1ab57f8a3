//! One of the adapters to merge: which tensors of the base model it changes, and which of its own have been used.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Tensor};

use super::placed_tensors::{PlacedLayer, PlacedTensors, Replacement, Search, fitting_prefixes};
use crate::adapter::{Adapter, Built, Geometry, Site, StoredTensor, StoredTensors};
use crate::error::{Error, Result, TensorReport};
use crate::inject::{Origin, Plan, UnmatchedPattern, plan, selector};
use crate::schema::Family;
use crate::select::{Decision, Selector, TargetModules};
use crate::store::model_facts::ModelFacts;
use crate::store::name_map::NameMap;
use crate::store::orientation;
use crate::store::standalone::{Skeleton, StoredAdapter, of_adapted_layers};

/// An adapter with its weight and its places in a base model.
pub(super) struct WeightedAdapter {
    adapter: StoredAdapter,
    weight: f64,
    pub(super) plan: Plan,
    /// Decides which modules the config targets, unless it targets all linear ones.
    selector: Option<Selector>,
    /// The layers that it changes, by the module's path in the base model.
    pub(super) layers: BTreeMap<String, Vec<PlacedLayer>>,
    /// The values that replace the base model's, by the tensor's name in the base model.
    pub(super) replaced: BTreeMap<String, Vec<Replacement>>,
    /// The keys that were asked for.
    used: Mutex<BTreeSet<String>>,
}

impl WeightedAdapter {
    /// Finds where the adapter's tensors belong in a base model; `base_has` says which tensor names that model has, and `modules` lists
    /// those of its modules if it can.
    pub(super) fn new(
        mut adapter: StoredAdapter,
        weight: f64,
        names: &NameMap,
        base_has: &dyn Fn(&str) -> bool,
        modules: &dyn Fn() -> BTreeSet<String>,
    ) -> Result<Self> {
        adapter.read_keys_for(&|path| base_has(&format!("{}.weight", names.place(path).module)))?;
        let skeleton = Skeleton::of(&[&adapter], None)?;
        let method = adapter.explicit_method();
        let plan = plan(&skeleton, method.as_ref(), adapter.name(), Origin::File)
            .map_err(|error| adapter.of_config(error))?;
        check_weight(&adapter, &plan, weight)?;
        // Of an adapter that keeps two modules tied, the plan has both.
        let selection = match adapter.method().selection() {
            selection if selection.ties => selection,
            _ => plan.method.selection(),
        };
        let targets = selection.targets;
        let selector = match targets.filter(|targets| **targets != TargetModules::AllLinear) {
            // If modules are renamed, the config's names would mean other modules.
            Some(targets) if names.is_empty() => {
                let fault = |fault| Error::Plan { adapter: adapter.name().to_owned(), faults: vec![fault] };
                Some(selector(&selection, targets).map_err(fault)?)
            }
            _ => None,
        };
        let placed = PlacedTensors::find(&Search { adapter: &adapter, plan: &plan, names, base_has });
        let PlacedTensors { layers, replaced, unexpected, ignored } = placed;
        let renames = if unexpected.is_empty() {
            Vec::new()
        } else {
            fitting_prefixes(&adapter, &plan, names, &modules())
        };
        let this = Self { adapter, weight, plan, selector, layers, replaced, used: Mutex::new(ignored) };
        this.check(TensorReport { unexpected, renames, ..TensorReport::default() })?;
        Ok(this)
    }

    pub(super) fn name(&self) -> &str {
        self.adapter.name()
    }

    /// The patterns of its config that match none of its layers.
    pub(super) fn unmatched_patterns(&self) -> Vec<UnmatchedPattern> {
        of_adapted_layers(&self.plan)
    }

    /// Returns an error if `report` says that anything does not fit.
    pub(super) fn check(&self, report: TensorReport) -> Result<()> {
        if report.is_empty() {
            return Ok(());
        }
        Err(self
            .adapter
            .of_weights(Error::Tensors { adapter: self.name().to_owned(), report: Box::new(report) }))
    }

    /// The layers of the adapter in the base model's `module`.
    pub(super) fn layers_of(&self, module: &str) -> &[PlacedLayer] {
        self.layers.get(module).map(Vec::as_slice).unwrap_or_default()
    }

    /// What the adapter replaces the base model's tensor `name` with.
    pub(super) fn replacements_of(&self, name: &str) -> &[Replacement] {
        self.replaced.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// All layers that the adapter changes.
    pub(super) fn all_layers(&self) -> impl Iterator<Item = &PlacedLayer> {
        self.layers.values().flatten()
    }

    /// The names of the base model's tensors that the adapter replaces.
    pub(super) fn replaced_names(&self) -> impl Iterator<Item = &str> {
        self.replaced.keys().map(String::as_str)
    }

    /// The names of those that it has copies of.
    pub(super) fn copied_names(&self) -> impl Iterator<Item = &str> {
        let is_copied = |(_, values): &(&String, &Vec<Replacement>)| values.iter().any(|value| value.is_copy);
        self.replaced.iter().filter(is_copied).map(|(name, _)| name.as_str())
    }

    /// The whole tensor that the adapter has in the place of `name`.
    pub(super) fn whole(&self, name: &str) -> Option<&Replacement> {
        self.replacements_of(name).iter().find(|replacement| replacement.rows.is_none())
    }

    /// Whether the adapter has the whole tensor `name`.
    pub(super) fn brings(&self, name: &str) -> bool {
        self.whole(name).is_some()
    }

    /// Whether merging the layer may change its bias.
    pub(super) fn changes_bias(&self, layer: &PlacedLayer) -> bool {
        self.plan.changes_bias(&layer.path)
    }

    /// Whether the config targets `module` but the file has nothing for it.
    pub(super) fn left_out(&self, module: &str) -> Result<bool> {
        let Some(selector) = self.selector.as_ref().filter(|_| !self.layers.contains_key(module)) else {
            return Ok(false);
        };
        let wrong = |fault| Error::Plan { adapter: self.name().to_owned(), faults: vec![fault] };
        Ok(selector.decide(module, None).map_err(wrong)? == Decision::Target)
    }

    /// The keys that were not asked for.
    pub(super) fn unused(&self) -> Vec<String> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = self.adapter.keys().into_iter().filter(|key| !used.contains(*key));
        keys.map(str::to_owned).collect()
    }

    /// The tensor at one of the adapter's own keys.
    pub(super) fn read(&self, key: &str, device: &Device) -> Result<Tensor> {
        let tensor = self.at(key, device)?;
        self.note([key]);
        Ok(tensor)
    }

    /// The same without counting it as used.
    pub(super) fn peek(&self, key: &str) -> Result<Tensor> {
        self.at(key, &Device::Cpu)
    }

    fn at(&self, key: &str, device: &Device) -> Result<Tensor> {
        let stored = self.adapter.stored_at(key);
        let read =
            stored.map(|stored| (stored.read)(device).map_err(|error| self.adapter.of_weights(error.into())));
        let missing =
            || self.adapter.of_weights(candle_core::Error::CannotFindTensor { path: key.to_owned() }.into());
        read.ok_or_else(missing)?
    }

    /// The shape and dtype of the tensor at one of the adapter's own keys.
    pub(super) fn stored_as(&self, key: &str) -> Option<(&[usize], safetensors::Dtype)> {
        Some((self.adapter.shape(key)?, self.adapter.dtype(key)?))
    }

    /// The geometry of a layer with a weight of this shape.
    pub(super) fn geometry(
        &self,
        layer: &PlacedLayer,
        weight: &[usize],
        facts: ModelFacts<'_>,
    ) -> Result<Geometry> {
        if let Some(geometry) = &layer.parameter {
            return Ok(geometry.clone());
        }
        let method = self.adapter.method();
        let found = orientation::geometry(method, &layer.shapes, weight, facts, &layer.module);
        let found = found.map_err(|reason| self.cannot_merge(layer, reason))?;
        found.ok_or_else(|| self.cannot_merge(layer, "its tensors make no adapter".to_owned()))
    }

    /// Whether a fused weight of this shape, of which the layer has some outputs, lies as `[in, out]`.
    pub(super) fn is_fused_transposed(
        &self,
        layer: &PlacedLayer,
        (weight, rows): (&[usize], &Range<usize>),
        facts: ModelFacts<'_>,
    ) -> Result<bool> {
        let method = self.adapter.method();
        orientation::is_fused_transposed(method, &layer.shapes, (weight, rows), facts, &layer.module)
            .map_err(|reason| self.cannot_merge(layer, reason))
    }

    /// The geometry of a layer whose weight is a part of a fused one that lies so.
    pub(super) fn geometry_of_part(
        &self,
        layer: &PlacedLayer,
        weight: &[usize],
        transposed: bool,
    ) -> Result<Geometry> {
        if let Some(geometry) = &layer.parameter {
            return Ok(geometry.clone());
        }
        let geometry = self.adapter.method().geometry(&layer.shapes, Some(weight), transposed);
        geometry.ok_or_else(|| self.cannot_merge(layer, "its tensors do not make an adapter".to_owned()))
    }

    /// Whether the layer is the rows of tokens in an embedding.
    pub(super) fn has_tokens(&self, layer: &PlacedLayer) -> bool {
        self.plan.has_tokens(&layer.path)
    }

    /// Whether the adapter of a tied head is that of the embeddings.
    pub(super) fn keeps_ties(&self) -> bool {
        // The plan is that of a file's layers one by one, which ties nothing.
        self.adapter.method().selection().ties
    }

    /// Whether the layer's tensors are those of an embedding.
    pub(super) fn is_on_embedding(&self, layer: &PlacedLayer) -> bool {
        let geometry = self.adapter.method().geometry(&layer.shapes, None, false);
        geometry.is_some_and(|geometry| geometry.family() == Family::Embedding)
    }

    /// The adapter of a layer, with its scaling multiplied by `self.weight`, and the base weight that it is for.
    pub(super) fn build(&self, layer: &PlacedLayer, site: &Site<'_>) -> Result<Built> {
        let stored = |key: &String| Some((key.clone(), self.adapter.stored_at(key)?));
        let tensors: BTreeMap<String, StoredTensor<'_>> = layer.keys.iter().filter_map(stored).collect();
        let mut source = StoredTensors::new(&tensors);
        let built = {
            let mut of_layer =
                source.of_layer(self.plan.stored_path(site.path), site.adapter_dtype(), site.device);
            self.plan.build(site, &mut of_layer).map_err(|error| self.adapter.of_weights(error))?
        };
        self.check(source.report())?;
        self.note(layer.keys.iter().map(String::as_str));
        let Some(Built { adapter, weight }) = built else {
            return Err(self.cannot_merge(layer, "it has no adapter there".to_owned()));
        };
        // A base weight in the file is already what an init left of it.
        let weight = weight.filter(|_| !layer.has_weight);
        Ok(Built { adapter: self.weighted(adapter, layer)?, weight })
    }

    /// The adapter with its scaling multiplied by the weight; token rows, which have no scaling, stay as they are.
    fn weighted(&self, adapter: Arc<dyn Adapter>, layer: &PlacedLayer) -> Result<Arc<dyn Adapter>> {
        let Some(scaling) = adapter.scaling().filter(|_| self.weight != 1.0) else { return Ok(adapter) };
        let refused = || {
            let reason = format!("its scaling cannot be multiplied by the weight {}", self.weight);
            self.cannot_merge(layer, reason)
        };
        adapter.with_scaling(scaling * self.weight).ok_or_else(refused)
    }

    pub(super) fn cannot_merge(&self, layer: &PlacedLayer, reason: String) -> Error {
        Error::CannotMerge { adapter: self.name().to_owned(), path: layer.path.clone(), reason }
    }

    pub(super) fn note<'k>(&self, keys: impl IntoIterator<Item = &'k str>) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.extend(keys.into_iter().map(str::to_owned));
    }
}

fn check_weight(adapter: &StoredAdapter, plan: &Plan, weight: f64) -> Result<()> {
    if !weight.is_finite() {
        return Err(unsupported(adapter.name(), format!("its weight {weight} is not a finite number")));
    }
    if weight != 1.0 && !plan.method.has_scaling() {
        let reason = format!("{} has no scaling that could take the weight {weight}", plan.method.name());
        return Err(unsupported(adapter.name(), reason));
    }
    Ok(())
}

/// Why an adapter cannot be merged without a model.
pub(super) fn unsupported(adapter: &str, reason: String) -> Error {
    Error::Unsupported { operation: "merge", adapter: adapter.to_owned(), reason }
}
