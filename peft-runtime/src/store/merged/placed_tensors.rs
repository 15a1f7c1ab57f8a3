//! Where in a base model's weights an adapter's tensors belong.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::adapter::{Geometry, LayerShapes};
use crate::inject::{Plan, base_key};
use crate::path::ModulePath;
use crate::store::name_map::{NameMap, Placement};
use crate::store::standalone::{StoredAdapter, layer_shapes, split_parameter};

/// A layer of an adapter.
pub(super) struct PlacedLayer {
    /// The layer's path in the adapter.
    pub(super) path: ModulePath,
    /// The base model's path of it.
    pub(super) module: String,
    /// The outputs that belong to the layer, if it is part of a fused one.
    pub(super) rows: Option<Range<usize>>,
    /// Whether the file also has the base weight that the adapter adds to.
    pub(super) has_weight: bool,
    pub(super) keys: Vec<String>,
    pub(super) shapes: LayerShapes,
    /// The shape of the bare parameter, if it is one.
    pub(super) parameter: Option<Geometry>,
}

/// A value of an adapter that replaces the base model's.
#[derive(Debug)]
pub(super) struct Replacement {
    pub(super) key: String,
    pub(super) rows: Option<Range<usize>>,
    /// Whether it is a copy that the adapter trained, and not the base model's value as the adapter knew it.
    pub(super) is_copy: bool,
}

/// All tensors of an adapter, by where they belong.
#[derive(Default)]
pub(super) struct PlacedTensors {
    /// The layers that it changes, by the module's path in the base model.
    pub(super) layers: BTreeMap<String, Vec<PlacedLayer>>,
    /// The values that replace the base model's, by the tensor's name in the base model.
    pub(super) replaced: BTreeMap<String, Vec<Replacement>>,
    /// Keys that belong nowhere.
    pub(super) unexpected: Vec<String>,
    /// Keys that have no effect.
    pub(super) ignored: BTreeSet<String>,
}

/// What the search for places works on.
pub(super) struct Search<'a> {
    pub(super) adapter: &'a StoredAdapter,
    pub(super) plan: &'a Plan,
    pub(super) names: &'a NameMap,
    /// Whether the base model has a tensor of this name.
    pub(super) base_has: &'a dyn Fn(&str) -> bool,
}

impl PlacedTensors {
    pub(super) fn find(search: &Search<'_>) -> Self {
        let mut placed = Self::default();
        placed.add_layers(search);
        placed.add_parameters(search);
        placed
    }

    fn add_layers(&mut self, search: &Search<'_>) {
        let adapter = search.adapter;
        for (own, ends) in adapter.layer_keys() {
            let stem = ModulePath::from(own);
            let keys: Vec<String> = ends.iter().map(|end| stem.parameter(end)).collect();
            let parameter = adapter.parameter(own);
            let path = parameter.map_or_else(|| stem.clone(), |parameter| parameter.path.clone());
            let Placement { module, rows } = search.names.place(path.as_str());
            // A bare parameter is itself what the base model has.
            let name = if parameter.is_some() { module.clone() } else { format!("{module}.weight") };
            let has_weight = (search.base_has)(&name);
            if search.plan.adapts(&path) && !has_weight && adapter.method().selection().ties {
                // A tied output layer that the base model stores as the embedding.
                self.ignored.extend(keys);
                continue;
            }
            if !search.plan.adapts(&path) || !has_weight {
                self.unexpected.extend(keys);
                continue;
            }
            let has = |end: &str| adapter.shape(&stem.parameter(end)).is_some();
            let has_weight = has("base_layer.weight") || has("weight");
            let shapes = layer_shapes(adapter, own, &ends);
            let parameter = parameter.map(|parameter| parameter.geometry.clone());
            let layer =
                PlacedLayer { path, module: module.clone(), rows, has_weight, keys, shapes, parameter };
            self.layers.entry(module).or_default().push(layer);
        }
    }

    fn add_parameters(&mut self, search: &Search<'_>) {
        let adapter = search.adapter;
        for key in adapter.parameter_keys() {
            let known: Option<(ModulePath, &str)> = split_parameter(key);
            let other = || key.rsplit_once('.').map(|(path, name)| (ModulePath::from(path), name));
            let Some((own, parameter)) = known.or_else(other) else {
                self.unexpected.push(key.to_owned());
                continue;
            };
            let is_superseded = base_key(key).is_some() && adapter.shape(&own.parameter(parameter)).is_some();
            // The bias of the copy is the one that acts.
            if is_superseded {
                self.ignored.insert(key.to_owned());
                continue;
            }
            let Placement { module, rows } = search.names.place(own.as_str());
            let name = ModulePath::from(module).parameter(parameter);
            if (search.base_has)(&name) || (search.plan.copies(&own) && rows.is_none()) {
                let is_copy = search.plan.copies(&own);
                let replacement = Replacement { key: key.to_owned(), rows, is_copy };
                self.replaced.entry(name).or_default().push(replacement);
            } else if adapter.method().selection().ties && parameter == "weight" {
                // The copy of a tied output layer, which is that of the embedding.
                self.ignored.insert(key.to_owned());
            } else {
                self.unexpected.push(key.to_owned());
            }
        }
    }
}

/// The prefixes with which every module of the adapter is one of the base model's `modules`, if there are such; a head that the
/// adapter brings need not be one.
pub(super) fn fitting_prefixes(
    adapter: &StoredAdapter,
    plan: &Plan,
    names: &NameMap,
    modules: &BTreeSet<String>,
) -> Vec<(String, String)> {
    let found = |copies: bool| {
        let layers = adapter.layer_keys().into_keys().map(ModulePath::from);
        let parameters = adapter.parameter_keys().filter_map(|key| Some(split_parameter(key)?.0));
        let parameters = parameters.filter(|path| copies || !plan.copies(path));
        let paths = layers.chain(parameters).map(|path| names.module_of(path.as_str()));
        let paths: BTreeSet<String> = paths.collect();
        NameMap::fitting(paths.iter().map(String::as_str), modules.iter().map(String::as_str))
    };
    let fitting = found(true).or_else(|| found(false)).unwrap_or_default();
    fitting.prefixes().map(|(from, to)| (from.to_owned(), to.to_owned())).collect()
}
