//! What formats need to know of the model that an adapter is for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use candle_core::Tensor;
use serde_json::Value;

use super::base_modules::BaseModules;
use crate::error::{AdapterFileError, Result};
use crate::module::{Injectable, leaves};
use crate::store::base_weights::BaseWeights;
use crate::store::name_map::NameMap;

/// The parameters of a base model by name, and its config.
#[derive(Debug)]
pub(in crate::store) struct Base {
    /// The shape of every parameter under its own name, `encoder.layer.0.attention.self.query.weight` for example.
    pub(in crate::store) shapes: BTreeMap<String, Vec<usize>>,
    /// Its `config.json`, where there is one.
    pub(in crate::store) config: Option<Value>,
    /// How the adapter's names differ from its own, where the caller has said so.
    pub(in crate::store) names: NameMap,
    /// The name of its folder, which in a pipeline says which of the models it is.
    pub(super) folder: Option<String>,
    values: Values,
    modules: OnceLock<BaseModules>,
}

/// What the block of a mixture is called: Mixtral's has another name since its experts are in one parameter.
const BLOCKS: [&str; 2] = [".block_sparse_moe.", ".mlp."];

/// Where the parameters are.
#[derive(Debug)]
enum Values {
    Files(BaseWeights),
    Memory(BTreeMap<String, Tensor>),
}

impl From<&BaseWeights> for Base {
    fn from(weights: &BaseWeights) -> Self {
        Self {
            shapes: weights.shapes().clone(),
            config: weights.config().cloned(),
            names: weights.names().clone(),
            folder: weights.folder(),
            values: Values::Files(weights.clone()),
            modules: OnceLock::new(),
        }
    }
}

impl Base {
    /// The parameters of a model in memory, the weights of quantized layers included. It has no config.
    pub(in crate::store) fn of_model<M: Injectable + ?Sized>(model: &M) -> Self {
        let (mut shapes, mut values) = (BTreeMap::new(), BTreeMap::new());
        for (path, leaf) in leaves(model) {
            if leaf.quantized_weight().is_some() {
                shapes.insert(path.parameter(leaf.weight_name()), leaf.geometry().weight_shape());
            }
            for (name, tensor) in leaf.parameters() {
                let name = path.parameter(name);
                shapes.insert(name.clone(), tensor.dims().to_vec());
                values.insert(name, tensor.detach());
            }
        }
        let values = Values::Memory(values);
        Self {
            shapes,
            config: None,
            names: NameMap::default(),
            folder: None,
            values,
            modules: OnceLock::new(),
        }
    }

    /// A model of which only the shapes are known.
    #[cfg(test)]
    pub(super) fn of_shapes(shapes: BTreeMap<String, Vec<usize>>) -> Self {
        let values = Values::Memory(BTreeMap::new());
        Self {
            shapes,
            config: None,
            names: NameMap::default(),
            folder: None,
            values,
            modules: OnceLock::new(),
        }
    }

    /// Reads the parameter called `name`.
    ///
    /// # Errors
    /// If there is none, or only its shape is known.
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor> {
        let own = match &self.values {
            Values::Files(weights) => return weights.tensor(name),
            Values::Memory(values) => values.get(name).cloned(),
        };
        let unknown = || {
            let reason =
                format!("the values of `{name}` are needed, and the model in memory has it quantized");
            AdapterFileError::NeedsBase { reason }.into()
        };
        own.ok_or_else(unknown)
    }

    /// The modules by their paths without wrappers.
    pub(super) fn modules(&self) -> &BaseModules {
        self.modules.get_or_init(|| BaseModules::of(self.module_paths()))
    }

    /// The one module of the base model that an adapter calls `module`, which has another name here: wrappers are not looked
    /// at, and the block of a mixture may have its old name or its new one.
    ///
    /// # Errors
    /// If it may be several.
    pub(super) fn other_name(&self, key: &str, module: &str) -> Result<Option<String>, AdapterFileError> {
        if let Some(name) = self.modules().other_name(key, module)? {
            return Ok(Some(name));
        }
        let [old, new] = BLOCKS;
        for (from, to) in [(old, new), (new, old)].into_iter().filter(|(from, _)| module.contains(from)) {
            let respelt = module.replace(from, to);
            // PhiMoE's router has another name as well.
            let router = respelt.strip_suffix(".gate").map(|block| format!("{block}.router"));
            let router =
                router.or_else(|| respelt.strip_suffix(".router").map(|block| format!("{block}.gate")));
            for name in std::iter::once(respelt.clone()).chain(router) {
                let placed = self.names.place(&name).module;
                if self.has_module(&placed) {
                    return Ok(Some(placed));
                }
                if let Some(name) = self.modules().other_name(key, &name)? {
                    return Ok(Some(name));
                }
            }
        }
        Ok(None)
    }

    /// Whether a module at `path` has parameters.
    pub(super) fn has_module(&self, path: &str) -> bool {
        let start = format!("{path}.");
        let mut below = self.shapes.range(start.clone()..);
        below.next().is_some_and(|(name, _)| name.starts_with(&start))
    }

    /// Whether the module that adapters call `path` has parameters of its own.
    pub(super) fn is_layer(&self, path: &str) -> bool {
        let start = format!("{}.", self.names.place(path).module);
        let below = self.shapes.range(start.clone()..).map_while(|(name, _)| name.strip_prefix(&start));
        below.into_iter().any(|parameter| !parameter.contains('.'))
    }

    /// The paths of all modules.
    pub(super) fn module_paths(&self) -> BTreeSet<&str> {
        let ends = |name: &str| name.match_indices('.').map(|(dot, _)| dot).collect::<Vec<_>>();
        self.shapes.keys().flat_map(|name| ends(name).into_iter().map(move |end| &name[..end])).collect()
    }
}
