//! `load_adapter`: an adapter out of a folder, whole or not at all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use super::file::MappedFile;
use super::keys::{CONFIG_FILE, WEIGHTS_FILE};
use super::save::adapter_folder;
use crate::ModulePath;
use crate::adapter::{AdapterMethod, StoredTensors};
use crate::config::PeftConfig;
use crate::error::{Error, Result, ShapeMismatch, TensorReport};
use crate::inject::{InjectionReport, ModelFacts, Origin, Plan, Tensors, commit, make};
use crate::layer::ParameterMap;
use crate::module::{Injectable, Leaf, LeafMut, leaves, leaves_mut, tree};

/// How to load an adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadOptions {
    trainable: bool,
}

impl LoadOptions {
    /// Loads for inference: the adapter's tensors are no part of the graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Loads for further training.
    #[must_use]
    pub fn trainable(mut self, trainable: bool) -> Self {
        self.trainable = trainable;
        self
    }
}

/// What loading an adapter did to the model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadReport {
    /// Where the files were.
    pub folder: PathBuf,
    /// What was injected.
    pub injection: InjectionReport,
    /// Parameters of the base model that the file holds too (resized embeddings, for example); they are replaced.
    pub base_parameters: Vec<String>,
}

/// Loads the adapter in `folder`, or in its subfolder `name`, and injects it as `name`.
pub(crate) fn load_adapter<M: Injectable + ?Sized>(
    model: &mut M,
    folder: &Path,
    name: &str,
    options: LoadOptions,
) -> Result<LoadReport> {
    let folder = find_folder(folder, name)?;
    let config = read_config(&folder)?;
    let weights_path = folder.join(WEIGHTS_FILE);
    let file = MappedFile::open(&weights_path)?;
    let tensors = file.tensors()?;
    let plan = plan(model, &config, name).map_err(|error| error.in_file(folder.join(CONFIG_FILE)))?;
    let mut stored = StoredTensors::new(&tensors);
    let made =
        make(model, &plan, Tensors::Stored(&mut stored)).map_err(|error| error.in_file(&weights_path))?;
    let mut report = stored.report();
    let base = base_parameters(model, &mut report, &tensors).map_err(|error| error.in_file(&weights_path))?;
    if !report.is_empty() {
        return Err(Error::Tensors { adapter: name.to_owned(), report }.in_file(weights_path));
    }
    let base_names = base.keys().map(|(path, name)| path.parameter(name)).collect();
    replace_base(model, &base)?;
    let injection = commit(model, &plan, made, options.trainable)?;
    Ok(LoadReport { folder, injection, base_parameters: base_names })
}

fn plan<M: Injectable + ?Sized>(model: &M, config: &PeftConfig, name: &str) -> Result<Plan> {
    let method: &dyn AdapterMethod = match config {
        PeftConfig::Lora(config) => config,
        PeftConfig::AdaLora(config) => config,
        PeftConfig::Ia3(config) => config,
    };
    Plan::new(&tree(model), ModelFacts::of(model), method, name, Origin::File)
}

/// The folder that holds the config: the adapter's own below `folder`, or `folder` itself.
fn find_folder(folder: &Path, name: &str) -> Result<PathBuf> {
    let own = adapter_folder(folder, name);
    if own.join(CONFIG_FILE).is_file() {
        return Ok(own);
    }
    let here = folder.join(CONFIG_FILE);
    match std::fs::metadata(&here) {
        Ok(_) => Ok(folder.to_owned()),
        Err(error) => Err(Error::io("open", here)(error)),
    }
}

fn read_config(folder: &Path) -> Result<PeftConfig> {
    let path = folder.join(CONFIG_FILE);
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    PeftConfig::from_json(&text).map_err(|error| error.in_file(path))
}

/// A parameter of the base model: the layer and the parameter's name in it.
type BaseParameter = (ModulePath, &'static str);

/// Takes the keys that name parameters of the base model out of the unexpected ones, and reads them.
fn base_parameters<M: Injectable + ?Sized>(
    model: &M,
    report: &mut TensorReport,
    tensors: &BTreeMap<String, crate::adapter::StoredTensor<'_>>,
) -> Result<BTreeMap<BaseParameter, Tensor>> {
    let mut found = BTreeMap::new();
    if report.unexpected.is_empty() {
        return Ok(found);
    }
    let leaves = leaves(model);
    let mut unexpected = Vec::new();
    for key in std::mem::take(&mut report.unexpected) {
        let named = key.replace(".base_layer.", ".");
        let owner = leaves.iter().find_map(|(path, leaf)| Some((path, parameter(path, leaf, &named)?)));
        match (owner, tensors.get(&key)) {
            (Some((_, (_, own))), Some(stored)) if own.dims() != stored.shape => {
                let (expected, found) = (own.dims().to_vec(), stored.shape.clone());
                report.mismatched.push(ShapeMismatch { key, expected, found });
            }
            (Some((path, (name, own))), Some(stored)) => {
                let tensor = (stored.read)(own.device())?.to_dtype(own.dtype())?;
                found.insert((path.clone(), name), tensor);
            }
            _ => unexpected.push(key),
        }
    }
    report.unexpected = unexpected;
    Ok(found)
}

fn parameter<'a>(path: &ModulePath, leaf: &Leaf<'a>, key: &str) -> Option<(&'static str, &'a Tensor)> {
    leaf.parameters().into_iter().find(|(name, _)| path.parameter(name) == key)
}

fn replace_base<M: Injectable + ?Sized>(
    model: &mut M,
    values: &BTreeMap<BaseParameter, Tensor>,
) -> Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    for (path, leaf) in leaves_mut(model) {
        let mut replace: Box<ParameterMap<'_>> =
            Box::new(|name, own: &Tensor| Ok(values.get(&(path.clone(), name)).unwrap_or(own).clone()));
        match leaf {
            LeafMut::Adapted(layer) => layer.map_parameters(&mut *replace)?,
            LeafMut::Plain(layer) => layer.map_parameters(&mut *replace)?,
        }
    }
    Ok(())
}
