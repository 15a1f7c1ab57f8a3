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
use crate::store::model_facts::ModelFacts;
use crate::store::model_weights::ModelWeights;
use crate::store::name_map::NameMap;
use crate::store::tied::{Tying, is_head};

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
        let shapes = shapes_of(&weights);
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
    pub(super) fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    /// `config.json` of the model's folder, if there is one.
    pub(super) fn config(&self) -> Option<&Value> {
        self.config.as_deref()
    }

    /// What is known of the model besides the values of its tensors.
    pub(super) fn facts(&self) -> ModelFacts<'_> {
        ModelFacts { config: self.config(), shapes: Some(&self.shapes) }
    }

    /// The model's own path of the module that adapters have at `path`.
    pub(super) fn module(&self, path: &str) -> String {
        self.names.place(path).module
    }

    /// How the adapters' names differ from the model's own.
    pub(super) fn names(&self) -> &NameMap {
        &self.names
    }

    /// The name of the folder that the weights are in.
    pub(super) fn folder(&self) -> Option<String> {
        let folder = self.weights.files().first()?.path().parent()?;
        let folder = std::path::absolute(folder).ok()?;
        Some(folder.file_name()?.to_string_lossy().into_owned())
    }

    /// Reads the parameter that the model itself calls `name`.
    ///
    /// # Errors
    /// If there is none, or its dtype is not one of candle's.
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor> {
        Ok(self.weights.tensor(name, &Device::Cpu)?)
    }

    /// The shape of a parameter of the module that the adapters have at `path`, if there is one: `weight` or `bias`.
    pub fn shape(&self, path: &str, parameter: &str) -> Option<&[usize]> {
        let place = self.names.place(path);
        let name = self.stored_name(&place.module, parameter);
        self.shapes.get(&name).filter(|_| place.rows.is_none()).map(Vec::as_slice)
    }

    /// Where the files have a parameter: for a head without a weight of its own, in the table of the embeddings.
    fn stored_name(&self, module: &str, parameter: &str) -> String {
        let name = ModulePath::from(module).parameter(parameter);
        if parameter == "weight" && !self.shapes.contains_key(&name) && is_head(module) {
            let tying = Tying::of(self.facts(), &|name| self.shapes.contains_key(name));
            if let Tying::Tied(tie) = tying
                && tie.head == module
            {
                return tie.table_weight();
            }
        }
        name
    }

    /// Reads a parameter of the module at `path`.
    pub(super) fn read(&self, path: &str, parameter: &str) -> candle_core::Result<Tensor> {
        let place = self.names.place(path);
        if place.rows.is_some() {
            bail!("`{path}` is part of `{}`, whose parts cannot be read one by one", place.module);
        }
        self.weights.tensor(&self.stored_name(&place.module, parameter), &Device::Cpu)
    }
}

/// The shapes of all tensors of a model.
pub(in crate::store) fn shapes_of(weights: &ModelWeights) -> BTreeMap<String, Vec<usize>> {
    let entries = weights.files().iter().flat_map(|file| Layout::of(file).tensors);
    entries.map(|entry| (entry.name, entry.shape)).collect()
}

/// `config.json` in the folder of a model's weights, if there is one.
pub(in crate::store) fn config_next_to(weights: &ModelWeights) -> Result<Option<Value>> {
    let folder = weights.files().first().and_then(|file| file.path().parent());
    let Some(path) = folder.map(|folder| folder.join("config.json")).filter(|path| path.is_file()) else {
        return Ok(None);
    };
    let config = serde_json::from_str(&read_text(&path)?);
    config.map(Some).map_err(|error| Error::from(error).in_file(&path))
}
