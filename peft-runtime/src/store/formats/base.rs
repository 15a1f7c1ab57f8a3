//! What formats need to know of the model that an adapter is for.

use std::borrow::Cow;
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
    paths: OnceLock<BTreeMap<String, bool>>,
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
            config: weights.config().cloned(),
            names: weights.names().clone(),
            folder: weights.folder(),
            ..Self::with(weights.shapes().clone(), Values::Files(weights.clone()))
        }
    }
}

impl Base {
    /// Parameters and nothing else.
    fn with(shapes: BTreeMap<String, Vec<usize>>, values: Values) -> Self {
        Self {
            shapes,
            config: None,
            names: NameMap::default(),
            folder: None,
            values,
            paths: OnceLock::new(),
            modules: OnceLock::new(),
        }
    }

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
        Self::with(shapes, Values::Memory(values))
    }

    /// A model of which only the shapes are known.
    #[cfg(test)]
    pub(super) fn of_shapes(shapes: BTreeMap<String, Vec<usize>>) -> Self {
        Self::with(shapes, Values::Memory(BTreeMap::new()))
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
                let placed = self.placed(&name);
                if self.has_module(&placed) {
                    return Ok(Some(placed.into_owned()));
                }
                if let Some(name) = self.modules().other_name(key, &name)? {
                    return Ok(Some(name));
                }
            }
        }
        Ok(None)
    }

    /// The path that the module which adapters call `path` has here.
    pub(super) fn placed<'p>(&self, path: &'p str) -> Cow<'p, str> {
        if self.names.is_empty() { path.into() } else { self.names.place(path).module.into() }
    }

    /// Whether a module at `path` has parameters.
    pub(super) fn has_module(&self, path: &str) -> bool {
        self.paths().contains_key(path)
    }

    /// Whether the module that adapters call `path` has parameters of its own.
    pub(super) fn is_layer(&self, path: &str) -> bool {
        self.paths().get(&*self.placed(path)).is_some_and(|has_own| *has_own)
    }

    /// The paths of all modules.
    pub(super) fn module_paths(&self) -> BTreeSet<&str> {
        self.paths().keys().map(String::as_str).collect()
    }

    /// The paths of all modules, each with whether it has parameters of its own.
    fn paths(&self) -> &BTreeMap<String, bool> {
        self.paths.get_or_init(|| {
            let mut paths = BTreeMap::new();
            for (module, _) in self.shapes.keys().filter_map(|name| name.rsplit_once('.')) {
                paths.insert(module.to_owned(), true);
                let mut above = module.rsplit_once('.');
                // Whatever is above a known module is known.
                while let Some((path, _)) = above.filter(|(path, _)| !paths.contains_key(*path)) {
                    paths.insert(path.to_owned(), false);
                    above = path.rsplit_once('.');
                }
            }
            paths
        })
    }
}
