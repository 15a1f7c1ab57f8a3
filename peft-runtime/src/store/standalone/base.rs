//! The base model's weights, for what an adapter's files do not say.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use candle_core::{Device, Tensor, bail};

use crate::error::Result;
use crate::path::ModulePath;
use crate::store::layout::Layout;
use crate::store::model_weights::ModelWeights;
use crate::store::name_map::NameMap;

/// The weights of the base model that adapters were made for, each read when it is needed.
#[derive(Clone)]
pub struct BaseWeights {
    weights: Arc<ModelWeights>,
    shapes: Arc<BTreeMap<String, Vec<usize>>>,
    names: NameMap,
}

impl fmt::Debug for BaseWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BaseWeights").field("tensors", &self.shapes.len()).finish_non_exhaustive()
    }
}

impl BaseWeights {
    /// The weights of a model.
    ///
    /// # Errors
    /// None at present: the headers were read when the weights were opened.
    pub fn new(weights: ModelWeights) -> Result<Self> {
        let mut shapes = BTreeMap::new();
        for file in weights.files() {
            shapes.extend(Layout::of(file).tensors.into_iter().map(|entry| (entry.name, entry.shape)));
        }
        Ok(Self { weights: Arc::new(weights), shapes: Arc::new(shapes), names: NameMap::default() })
    }

    /// The same weights under the names that the adapters use.
    #[must_use]
    pub fn with_names(mut self, names: NameMap) -> Self {
        self.names = names;
        self
    }

    /// The shape of a parameter of the module at `path`, if there is one.
    pub(super) fn shape(&self, path: &str, parameter: &str) -> Option<&[usize]> {
        let place = self.names.place(path);
        let name = ModulePath::from(place.module).parameter(parameter);
        self.shapes.get(&name).filter(|_| place.rows.is_none()).map(Vec::as_slice)
    }

    /// Reads a parameter of the module at `path`.
    pub(super) fn read(&self, path: &str, parameter: &str) -> candle_core::Result<Tensor> {
        let place = self.names.place(path);
        if place.rows.is_some() {
            bail!("`{path}` is part of `{}`, whose parts cannot be read one by one", place.module);
        }
        self.weights.tensor(&ModulePath::from(place.module).parameter(parameter), &Device::Cpu)
    }
}
