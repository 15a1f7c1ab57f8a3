//! `load_adapter`: loads an adapter from a folder, whole or not at all.

use std::fmt;
use std::path::{Path, PathBuf};

use super::adapter_files::holds_adapter;
use super::base_model::{BaseParameters, base_parameters, replace_base};
use super::folders::{check_here, is_checkpoint, named_adapters};
use super::formats::{self, Base, PEFT, is_bare};
use super::keys::{CONFIG_FILE, DEFAULT_ADAPTER};
use super::save::adapter_folder;
use super::stored_contents::StoredContents;
use crate::adapter::{AdapterMethod, StoredTensors};
use crate::error::{Error, Result};
use crate::inject::{
    InjectionReport, LayerChanges, Origin, Plan, Tensors, commit, keep_weights, make, name_fault, plan, swap,
};
use crate::manage::{autocasts, check_known, check_not_merged};
use crate::module::{Injectable, leaves};

/// How to load an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadOptions {
    trainable: bool,
    autocasts: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { trainable: false, autocasts: true }
    }
}

impl LoadOptions {
    /// Loads for inference: the adapter's tensors are not part of the graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Loads for further training.
    #[must_use]
    pub fn trainable(mut self, trainable: bool) -> Self {
        self.trainable = trainable;
        self
    }

    /// Whether the adapter is held in f32 on a base model in bf16 or f16, whatever the file has; otherwise it is held as the
    /// base model is. The default is `true`, as for PEFT's argument of that name.
    #[must_use]
    pub fn autocast_adapter_dtype(mut self, autocast: bool) -> Self {
        self.autocasts = autocast;
        self
    }
}

/// What loading an adapter did to the model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadReport {
    /// Where the files were.
    pub folder: PathBuf,
    /// Their format, as [`StoredAdapter::format`](crate::StoredAdapter::format) has it.
    pub format: &'static str,
    /// The keys of parts that are for other models and were left out.
    pub left_out: Vec<String>,
    /// What was injected.
    pub injection: InjectionReport,
    /// Parameters of the base model that the file holds too (resized embeddings, for example); they are replaced.
    pub base_parameters: Vec<String>,
}

/// The folder, what was injected, where that is attached and where it acts: a line each.
impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { folder, injection, base_parameters, .. } = self;
        writeln!(f, "loaded from `{}`", folder.display())?;
        if !base_parameters.is_empty() {
            writeln!(f, "parameters of the base model that were replaced: {}", base_parameters.join(", "))?;
        }
        write!(f, "{injection}")
    }
}

/// An adapter from a folder as it will be on the model: every step that can fail is done.
struct Loaded {
    folder: PathBuf,
    format: &'static str,
    left_out: Vec<String>,
    plan: Plan,
    changes: LayerChanges,
    base: BaseParameters,
}

impl Loaded {
    fn read<M: Injectable + ?Sized>(
        model: &M,
        folder: &Path,
        name: &str,
        terms: (Origin, bool),
    ) -> Result<Self> {
        let place = find_adapter(folder, name)?;
        let opened = formats::open(&place, Some(&Base::of_model(model)))?;
        let loaded = Self::of_contents(model, opened.config.method(), &opened.contents, name, terms)?;
        Ok(Self { format: opened.format, left_out: opened.left_out, ..loaded })
    }

    fn of_contents<M: Injectable + ?Sized>(
        model: &M,
        method: &dyn AdapterMethod,
        adapter: &StoredContents,
        name: &str,
        (origin, autocasts): (Origin, bool),
    ) -> Result<Self> {
        let tensors = adapter.stored();
        let planned = plan(model, method, name, origin).map_err(|error| adapter.of_config(error))?;
        let plan = planned.with_autocasts(autocasts);
        let mut stored = StoredTensors::new(&tensors);
        let mut changes =
            make(model, &plan, Tensors::Stored(&mut stored)).map_err(|error| adapter.of_weights(error))?;
        let mut report = stored.report();
        let base =
            base_parameters(model, &mut report, &tensors).map_err(|error| adapter.of_weights(error))?;
        if !report.is_empty() {
            return Err(
                adapter.of_weights(Error::Tensors { adapter: name.to_owned(), report: Box::new(report) })
            );
        }
        // A base weight in the file is already what an init left of it.
        keep_weights(model, &plan, &mut changes, |path, name| base.contains_key(&(path.clone(), name)));
        let (folder, format, left_out) = (adapter.folder(), PEFT, Vec::new());
        Ok(Self { folder, format, left_out, plan, changes, base })
    }

    fn base_names(&self) -> Vec<String> {
        self.base.keys().map(|(path, name)| path.parameter(name)).collect()
    }
}

/// Loads the adapter in `folder`, or in its subfolder `name`, and injects it as `name`.
pub(crate) fn load_adapter<M: Injectable + ?Sized>(
    model: &mut M,
    folder: &Path,
    name: &str,
    options: LoadOptions,
) -> Result<LoadReport> {
    let loaded = Loaded::read(model, folder, name, (Origin::File, options.autocasts))?;
    inject_loaded(model, loaded, options)
}

/// Injects an adapter that has already been read, as `name` and with the settings of `method` instead of its own.
pub(super) fn load_stored<M: Injectable + ?Sized>(
    model: &mut M,
    contents: &StoredContents,
    method: &dyn AdapterMethod,
    name: &str,
) -> Result<LoadReport> {
    let options = LoadOptions::new();
    let loaded = Loaded::of_contents(model, method, contents, name, (Origin::File, options.autocasts))?;
    inject_loaded(model, loaded, options)
}

fn inject_loaded<M: Injectable + ?Sized>(
    model: &mut M,
    loaded: Loaded,
    options: LoadOptions,
) -> Result<LoadReport> {
    let base_parameters = loaded.base_names();
    replace_base(model, &loaded.base)?;
    let Loaded { folder, format, left_out, plan, changes, .. } = loaded;
    let injection = commit(model, &plan, changes, options.trainable)?;
    Ok(LoadReport { folder, format, left_out, injection, base_parameters })
}

/// Replaces the adapter `name` with the one in `folder`; whether `name` is active and trainable, and the precision in which it
/// is held, does not change.
pub(crate) fn hotswap_adapter<M: Injectable + ?Sized>(
    model: &mut M,
    folder: &Path,
    name: &str,
) -> Result<LoadReport> {
    const OPERATION: &str = "hot-swap";
    let all = leaves(model);
    check_known(&all, &[name])?;
    check_not_merged(model, name, OPERATION)?;
    let slots = || all.iter().filter_map(|(_, leaf)| leaf.stack()?.slot(name));
    let trainable = slots().any(|slot| slot.trainable);
    if slots().any(|slot| slot.adapter().is_some_and(|adapter| adapter.changed_base())) {
        let reason = "its init changed the base weights; delete it and load the other one".to_owned();
        return Err(Error::Unsupported { operation: OPERATION, adapter: name.to_owned(), reason });
    }
    let loaded = Loaded::read(model, folder, name, (Origin::Swap, autocasts(&all, name)))?;
    let base_parameters = loaded.base_names();
    replace_base(model, &loaded.base)?;
    let Loaded { folder, format, left_out, plan, changes, .. } = loaded;
    let injection = swap(model, &plan, changes, trainable)?;
    Ok(LoadReport { folder, format, left_out, injection, base_parameters })
}

/// The adapter of a name: its folder, or a file that is one.
fn find_adapter(folder: &Path, name: &str) -> Result<PathBuf> {
    let has_config = || holds_adapter(&adapter_folder(folder, name)) || holds_adapter(folder);
    // A file of another program has no config.
    let is_foreign = folder.is_file() || folder.is_dir() && !has_config() && !is_bare(folder);
    match name_fault(name) {
        None if is_foreign => Ok(folder.to_owned()),
        _ => find_folder(folder, name),
    }
}

/// The folder that holds the config: the adapter's own subfolder of `folder`, or `folder` itself.
fn find_folder(folder: &Path, name: &str) -> Result<PathBuf> {
    // A name from elsewhere must not act as a path.
    if let Some(fault) = name_fault(name) {
        return Err(Error::Plan { adapter: name.to_owned(), faults: vec![fault] });
    }
    let own = adapter_folder(folder, name);
    if holds_adapter(&own) {
        return Ok(own);
    }
    let here = folder.join(CONFIG_FILE);
    check_here(folder)?;
    if !holds_adapter(folder) {
        std::fs::metadata(&here).map_err(Error::io("open", &here))?;
    }
    // The only adapter in a folder may be loaded under any name; if there are several, each has its own. The checkpoints of a
    // training run are steps of the adapter in the folder itself.
    let others: Vec<String> =
        named_adapters(folder).into_iter().filter(|other| !is_checkpoint(other)).collect();
    if name != DEFAULT_ADAPTER && !others.is_empty() {
        return Err(Error::UnknownAdapter { name: name.to_owned(), known: others }.in_file(folder));
    }
    Ok(folder.to_owned())
}
