//! Checkpoints of a training run: written completely or not at all, and read back bit for bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor, Var};
use safetensors::tensor::TensorView;

use super::optimizer::Optimizer;
use super::rank_allocation::RankAllocation;
use super::step_folders;
use super::training_state::{TrainingState, set_dropout_positions};
use crate::error::{Error, Result, ShapeMismatch, TensorReport, TrainingError, shortened};
use crate::manage::trainable_parameters;
use crate::module::Injectable;
use crate::store::{PendingFile, SaveOptions, parse_safetensors, read_text, save_pretrained, to_bytes};

const STATE_FILE: &str = "training.json";
const PARAMETERS_FILE: &str = "parameters.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const ALLOCATOR_FILE: &str = "rank_allocator.safetensors";

/// The tensor files that a checkpoint can have.
const TENSOR_FILES: [&str; 3] = [PARAMETERS_FILE, OPTIMIZER_FILE, ALLOCATOR_FILE];

/// A folder of checkpoints, one subfolder `step-N` each, of which the newest are kept. It belongs to one run.
///
/// Each subfolder is an adapter that Python PEFT can load, with additional files that only training needs. It appears
/// complete: a process that is killed while it writes leaves no partial checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    kept: usize,
    save: SaveOptions,
}

/// A complete checkpoint.
#[derive(Clone, Debug)]
pub struct TrainingCheckpoint {
    folder: PathBuf,
    state: TrainingState,
}

/// What goes into a checkpoint in addition to the adapter.
pub(super) struct Contents<'a> {
    pub(super) state: TrainingState,
    /// Everything that trains, by name.
    pub(super) parameters: &'a [(String, Var)],
    pub(super) optimizer: BTreeMap<String, Tensor>,
    pub(super) allocator: Option<BTreeMap<String, Tensor>>,
}

impl Checkpoints {
    /// Checkpoints in `folder`, which is created when the first one is written. The newest two are kept.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), kept: 2, save: SaveOptions::new() }
    }

    /// How many of the newest checkpoints are kept; at least one.
    #[must_use]
    pub fn with_kept(mut self, count: usize) -> Self {
        self.kept = count.max(1);
        self
    }

    /// How the adapter is saved in each checkpoint.
    #[must_use]
    pub fn with_save_options(mut self, options: SaveOptions) -> Self {
        self.save = options;
        self
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The newest complete checkpoint; `None` if there is no checkpoint at all.
    ///
    /// # Errors
    /// If there are checkpoints and none of them can be read: the error of the newest.
    pub fn latest(&self) -> Result<Option<TrainingCheckpoint>> {
        let mut newest_error = None;
        for (_, path) in step_folders::list(&self.folder)?.into_iter().rev() {
            match TrainingCheckpoint::open(path) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(error) => newest_error = newest_error.or(Some(error)),
            }
        }
        newest_error.map_or(Ok(None), Err)
    }

    /// An error if a checkpoint is ahead of the run: it belongs to another run.
    pub(super) fn check_ahead(&self, step: u64) -> Result<()> {
        match step_folders::list(&self.folder)?.pop() {
            Some((last, path)) if last > step => {
                let reason = format!(
                    "it is ahead of this run, which is at step {step}; resume from it, or choose another folder"
                );
                Err(Error::Training(TrainingError::Checkpoint { path, reason }))
            }
            _ => Ok(()),
        }
    }

    /// Writes a checkpoint, then removes those that are too old.
    pub(super) fn save<M: Injectable + ?Sized>(&self, model: &M, contents: Contents<'_>) -> Result<PathBuf> {
        let step = contents.state.step;
        self.check_ahead(step)?;
        let place = step_folders::write(&self.folder, step, |folder| self.fill(model, contents, folder))?;
        let steps = step_folders::list(&self.folder)?;
        for (old, _) in steps.iter().rev().skip(self.kept) {
            step_folders::remove(&self.folder, *old)?;
        }
        Ok(place)
    }

    fn fill<M: Injectable + ?Sized>(&self, model: &M, contents: Contents<'_>, folder: &Path) -> Result<()> {
        let Contents { mut state, parameters, optimizer, allocator } = contents;
        for adapter in &state.adapters {
            save_pretrained(model, folder, adapter, self.save)?;
        }
        let parameters = parameters.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor()));
        let tensors = [
            (PARAMETERS_FILE, Some(parameters.collect())),
            (OPTIMIZER_FILE, Some(optimizer)),
            (ALLOCATOR_FILE, allocator),
        ];
        for (name, tensors) in tensors {
            let Some(tensors) = tensors else { continue };
            let bytes = to_bytes(&tensors)?;
            PendingFile::write(folder.join(name), &bytes)?.persist()?;
            state.files.insert(name.to_owned(), bytes.len() as u64);
        }
        PendingFile::write(folder.join(STATE_FILE), state.to_json()?.as_bytes())?.persist()
    }
}

impl TrainingCheckpoint {
    /// The checkpoint in `folder`.
    ///
    /// # Errors
    /// An error that names the file that is missing, cut short or not what it should be.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        let path = folder.join(STATE_FILE);
        let text = read_text(&path)?;
        let state = TrainingState::from_json(&text).map_err(|error| error.in_file(&path))?;
        if let Some(name) = state.files.keys().find(|name| !TENSOR_FILES.contains(&name.as_str())) {
            let reason = format!("it names `{}`, which is not a file of a checkpoint", shortened(name));
            return Err(Error::Training(TrainingError::Checkpoint { path, reason }));
        }
        for (name, size) in &state.files {
            let path = folder.join(name);
            let found = std::fs::metadata(&path).map_err(Error::io("read", &path))?.len();
            if found != *size {
                let reason = format!("it has {found} bytes and should have {size}");
                return Err(Error::Training(TrainingError::Checkpoint { path, reason }));
            }
        }
        Ok(Self { folder, state })
    }

    /// Where it is; the folder can also be loaded as an adapter.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the run was.
    pub fn state(&self) -> &TrainingState {
        &self.state
    }

    /// Restores the model and the optimiser. The model has to have the same adapters, fresh or trained; the optimiser
    /// has to be created for them as at the start of the run; the allocator has to be that of the run, if it had one.
    ///
    /// # Errors
    /// [`TrainingError::Tensors`] if something in the checkpoint does not fit; nothing is changed then.
    pub fn restore<M: Injectable + ?Sized>(
        &self,
        model: &M,
        optimizer: &mut dyn Optimizer,
        allocator: Option<&mut (dyn RankAllocation + 'static)>,
    ) -> Result<()> {
        let values = self.parameters(&trained(model, &*optimizer))?;
        let in_file = |name: &str| {
            let path = self.folder.join(name);
            move |error: Error| error.in_file(path)
        };
        let state = self.read(OPTIMIZER_FILE)?;
        match allocator {
            Some(allocator) => {
                let ranks = self.read(ALLOCATOR_FILE)?;
                allocator.check_state(&ranks).map_err(in_file(ALLOCATOR_FILE))?;
                optimizer.load_state(&state).map_err(in_file(OPTIMIZER_FILE))?;
                allocator.load_state(&ranks).map_err(in_file(ALLOCATOR_FILE))?;
            }
            None if self.state.files.contains_key(ALLOCATOR_FILE) => {
                let reason = "its run had a rank allocator, and this one has none".to_owned();
                return Err(Error::Training(TrainingError::Checkpoint { path: self.folder.clone(), reason }));
            }
            None => optimizer.load_state(&state).map_err(in_file(OPTIMIZER_FILE))?,
        }
        for (var, value) in values {
            var.set(&value)?;
        }
        set_dropout_positions(model, &self.state.dropout);
        Ok(())
    }

    /// The value of each of `expected`, which have to be exactly those in the checkpoint.
    fn parameters(&self, expected: &[(String, Var)]) -> Result<Vec<(Var, Tensor)>> {
        let mut stored = self.read(PARAMETERS_FILE)?;
        let mut report = TensorReport::default();
        let mut values = Vec::with_capacity(expected.len());
        for (name, var) in expected {
            match stored.remove(name) {
                None => report.missing.push(name.clone()),
                Some(value) if value.dims() == var.dims() => {
                    values.push((var.clone(), value.to_dtype(var.dtype())?.to_device(var.device())?));
                }
                Some(value) => report.mismatched.push(ShapeMismatch {
                    key: name.clone(),
                    expected: var.dims().to_vec(),
                    found: value.dims().to_vec(),
                }),
            }
        }
        report.unexpected.extend(stored.into_keys());
        if report.is_empty() {
            return Ok(values);
        }
        let error = Error::Training(TrainingError::Tensors { what: "what trains", report: Box::new(report) });
        Err(error.in_file(self.folder.join(PARAMETERS_FILE)))
    }

    /// The tensors in one of the files.
    fn read(&self, name: &str) -> Result<BTreeMap<String, Tensor>> {
        let path = self.folder.join(name);
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let in_file = |error: Error| error.in_file(&path);
        let file = parse_safetensors(&bytes).map_err(|error| in_file(error.into()))?;
        let load = |(name, view): (String, TensorView<'_>)| {
            let tensor = view.load(&Device::Cpu).map_err(|error| in_file(error.into()))?;
            Ok((name, tensor))
        };
        file.tensors().into_iter().map(load).collect()
    }
}

/// Everything that training changes, by name: what the optimiser updates, and what else the model trains.
pub(super) fn trained<M: Injectable + ?Sized>(
    model: &M,
    optimizer: &(impl Optimizer + ?Sized),
) -> Vec<(String, Var)> {
    let mut trained = optimizer.parameters();
    let ids: Vec<_> = trained.iter().map(|(_, var)| var.id()).collect();
    trained.extend(trainable_parameters(model).into_iter().filter(|(_, var)| !ids.contains(&var.id())));
    trained
}
