//! The base model's weights, for what an adapter's files do not say.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use candle_core::{Device, Tensor, bail};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::path::ModulePath;
use crate::store::file::read_text;
use crate::store::layout::Layout;
use crate::store::model_weights::ModelWeights;
use crate::store::name_map::NameMap;

/// The weights of the base model that adapters were made for, each read when it is needed.
#[derive(Clone)]
pub struct BaseWeights {
    weights: Arc<ModelWeights>,
    shapes: Arc<BTreeMap<String, Vec<usize>>>,
    /// `config.json` of the model's folder, if there is one.
    config: Option<Arc<Value>>,
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
    /// If there is a `config.json` next to the weights that is not JSON.
    pub fn new(weights: ModelWeights) -> Result<Self> {
        let mut shapes = BTreeMap::new();
        for file in weights.files() {
            shapes.extend(Layout::of(file).tensors.into_iter().map(|entry| (entry.name, entry.shape)));
        }
        let config = config_next_to(&weights)?.map(Arc::new);
        Ok(Self { weights: Arc::new(weights), shapes: Arc::new(shapes), config, names: NameMap::default() })
    }

    /// The same weights under the names that the adapters use.
    #[must_use]
    pub fn with_names(mut self, names: NameMap) -> Self {
        self.names = names;
        self
    }

    /// The names and shapes of all tensors, under the model's own names.
    pub(in crate::store) fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    /// `config.json` of the model's folder, if there is one.
    pub(in crate::store) fn config(&self) -> Option<&Value> {
        self.config.as_deref()
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

fn config_next_to(weights: &ModelWeights) -> Result<Option<Value>> {
    let folder = weights.files().first().and_then(|file| file.path().parent());
    let Some(path) = folder.map(|folder| folder.join("config.json")).filter(|path| path.is_file()) else {
        return Ok(None);
    };
    let config = serde_json::from_str(&read_text(&path)?);
    config.map(Some).map_err(|error| Error::from(error).in_file(&path))
}
