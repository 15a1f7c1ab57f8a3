//! The training loop's inside: from a loss to changed weights, with all that can go wrong on the way.

mod saving;

use std::path::{Path, PathBuf};

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};

use super::adamw::AdamW;
use super::audit::{Audit, audit};
use super::checkpoint::Checkpoints;
use super::gradients::{GradientAccumulator, clip_by_global_norm, first_non_finite, global_norm};
use super::optimizer::Optimizer;
use super::rank_allocation::RankAllocation;
use super::schedule::Schedule;
use crate::error::{Error, Result, TrainingError};
use crate::module::Injectable;

/// Takes losses, and trains: backward pass, accumulation, clipping, schedule, optimiser, rank allocation, checkpoints.
///
/// The model stays with the caller, who computes the loss in whatever way. In its first step the trainer looks which tensors
/// got a gradient, and refuses to go on if none did.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Linear, Module};
/// use peft_runtime::prelude::*;
/// use peft_runtime::train::{AdamW, Schedule, Trainer};
///
/// #[derive(Injectable)]
/// struct Model {
///     linear: Adapted<Linear>,
/// }
///
/// let weight = Tensor::randn(0f32, 1., (2, 3), &Device::Cpu)?;
/// let mut model = Model { linear: Linear::new(weight, None).into() };
/// model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(targets!(Model; "linear")), "default")?;
///
/// let folder = tempfile::tempdir().unwrap();
/// let optimizer = AdamW::for_model(&model, 0.05)?;
/// let mut trainer = Trainer::new(&model, optimizer, Schedule::linear(20).with_warm_up(2))?
///     .with_clipping(1.0)
///     .with_accumulation(2)
///     .with_checkpoints(folder.path(), 10);
/// trainer.resume(&model)?; // Goes on from the newest checkpoint, if there is one.
///
/// let x = Tensor::randn(0f32, 1., (8, 3), &Device::Cpu)?;
/// while trainer.steps() < 20 {
///     // `trainer.batches()` tells which batch comes next, also after a resume.
///     let loss = (model.linear.forward(&x)? - 1.0)?.sqr()?.mean_all()?;
///     let report = trainer.step(&model, &loss)?;
///     # let _ = (report.loss, report.learning_rate);
/// }
/// assert!(folder.path().join("step-20/adapter_model.safetensors").is_file());
/// # Ok::<(), peft_runtime::Error>(())
/// ```
#[derive(Debug)]
pub struct Trainer<O = AdamW> {
    optimizer: O,
    schedule: Schedule,
    accumulation: usize,
    clipping: Option<f64>,
    checkpoints: Option<(Checkpoints, u64)>,
    allocator: Option<Box<dyn RankAllocation>>,
    strict: bool,
    accumulator: GradientAccumulator,
    /// How many steps the optimiser has taken.
    steps: u64,
    /// How many losses were taken in, and batches skipped.
    batches: u64,
    last_checkpoint: Option<PathBuf>,
    notes: serde_json::Value,
    audit: Option<Audit>,
}

/// What one call of [`Trainer::step`] did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// How many steps the optimiser has taken, with this one.
    pub step: u64,
    /// The loss that was given.
    pub loss: f64,
    /// Whether the optimiser took a step; it does after as many losses as are accumulated.
    pub updated: bool,
    /// The length of all gradients together before they were clipped, if the optimiser took a step.
    pub gradient_norm: Option<f64>,
    /// The learning rate of this step, for the first group of the optimiser.
    pub learning_rate: f64,
    /// Where the checkpoint of this step is, if one was due.
    pub checkpoint: Option<PathBuf>,
}

impl<O: Optimizer> Trainer<O> {
    /// A trainer that steps what the optimiser has, one step a loss, without clipping and checkpoints.
    ///
    /// # Errors
    /// [`TrainingError::MissingGradients`] if the optimiser has no variables.
    pub fn new<M: Injectable + ?Sized>(model: &M, optimizer: O, schedule: Schedule) -> Result<Self> {
        let parameters = optimizer.parameters();
        if parameters.is_empty() {
            // Where nothing trains, the audit says why.
            let found = audit(model, &GradStore::default());
            let report = match found.trainable() {
                0 => found.to_string(),
                count => {
                    format!("the optimiser has no variables, and the model has {count} tensors that train")
                }
            };
            return Err(Error::Training(TrainingError::MissingGradients { missing: Vec::new(), report }));
        }
        Ok(Self {
            optimizer,
            schedule,
            accumulation: 1,
            clipping: None,
            checkpoints: None,
            allocator: None,
            strict: false,
            accumulator: GradientAccumulator::new(parameters),
            steps: 0,
            batches: 0,
            last_checkpoint: None,
            notes: serde_json::Value::Null,
            audit: None,
        })
    }

    /// Shortens the gradients to `max_norm` where they are longer, all of them together.
    #[must_use]
    pub fn with_clipping(mut self, max_norm: f64) -> Self {
        self.clipping = Some(max_norm);
        self
    }

    /// Takes one step of the optimiser for every `losses` losses, on their mean.
    #[must_use]
    pub fn with_accumulation(mut self, losses: usize) -> Self {
        self.accumulation = losses.max(1);
        self
    }

    /// Writes a checkpoint into `folder` after every `every` steps of the optimiser.
    #[must_use]
    pub fn with_checkpoints(self, folder: impl AsRef<Path>, every: u64) -> Self {
        self.with_checkpoints_in(Checkpoints::new(folder.as_ref()), every)
    }

    /// The same with settings for the folder.
    #[must_use]
    pub fn with_checkpoints_in(mut self, checkpoints: Checkpoints, every: u64) -> Self {
        self.checkpoints = Some((checkpoints, every.max(1)));
        self
    }

    /// Moves ranks between the layers of an adapter as training goes on. The trainer adds the allocation's term to each loss.
    #[must_use]
    pub fn with_rank_allocator(mut self, allocator: impl RankAllocation + 'static) -> Self {
        self.allocator = Some(Box::new(allocator));
        self
    }

    /// Makes it an error if in the first step any tensor that trains has no gradient, not only if all have none.
    #[must_use]
    pub fn with_strict_audit(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Keeps `notes` in every checkpoint: the seed of the data's order, for example.
    #[must_use]
    pub fn with_notes(mut self, notes: serde_json::Value) -> Self {
        self.notes = notes;
        self
    }

    /// How many steps the optimiser has taken, in this run and those it goes on from.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// How many losses were taken in, and batches skipped: the number of the next batch, counted from 0.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// What the first step found of gradients; `None` before it.
    pub fn audit(&self) -> Option<&Audit> {
        self.audit.as_ref()
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &O {
        &self.optimizer
    }

    /// The rank allocator, if there is one.
    pub fn rank_allocator(&self) -> Option<&dyn RankAllocation> {
        self.allocator.as_deref()
    }

    /// Takes in the loss of one batch; after as many as are accumulated, the optimiser takes a step.
    ///
    /// # Errors
    /// [`TrainingError::NonFiniteLoss`] or [`TrainingError::NonFiniteGradient`], with the last good checkpoint: no weight is
    /// changed then. [`TrainingError::MissingGradients`] in the first step. [`TrainingError::Checkpoint`] if the folder of
    /// checkpoints has one that is further than the run. [`Error::Io`] if a checkpoint cannot be written.
    pub fn step<M: Injectable + ?Sized>(&mut self, model: &M, loss: &Tensor) -> Result<StepReport> {
        let value = scalar(loss)?;
        if !value.is_finite() {
            let (step, last_checkpoint) = (self.steps + 1, self.last_checkpoint.clone());
            return Err(Error::Training(TrainingError::NonFiniteLoss { step, loss: value, last_checkpoint }));
        }
        let grads = match &self.allocator {
            Some(allocator) => {
                let term = allocator.loss_term()?.to_dtype(loss.dtype())?.to_device(loss.device())?;
                (loss.reshape(())? + term)?.backward()?
            }
            None => loss.backward()?,
        };
        if self.audit.is_none() {
            self.start(model, &grads)?;
        }
        self.accumulator.add(&grads)?;
        drop(grads);
        self.batches += 1;
        let mut report = StepReport {
            step: self.steps,
            loss: value,
            updated: false,
            gradient_norm: None,
            learning_rate: self.optimizer.learning_rate() * self.schedule.factor(self.steps),
            checkpoint: None,
        };
        if self.accumulator.count() >= self.accumulation {
            report.gradient_norm = Some(self.update()?);
            report.updated = true;
            report.step = self.steps;
            report.checkpoint = self.save_if_due(model)?;
        }
        Ok(report)
    }

    /// Counts a batch that has no loss, because no target in it counts; it is none of those that a step accumulates.
    pub fn skip_batch(&mut self) {
        self.batches += 1;
    }

    /// What the first step checks.
    fn start<M: Injectable + ?Sized>(&mut self, model: &M, grads: &GradStore) -> Result<()> {
        if let Some((checkpoints, _)) = &self.checkpoints {
            checkpoints.check_ahead(self.steps)?;
        }
        let found = audit(model, grads);
        if self.strict {
            found.ensure_complete()?;
        }
        // Variables that are none of the model's may train as well.
        if !self.accumulator.parameters().iter().any(|(_, var)| grads.get(var).is_some()) {
            found.ensure_any()?;
        }
        self.audit = Some(found);
        Ok(())
    }

    /// A step of the optimiser on what is accumulated; returns the norm of the gradients.
    fn update(&mut self) -> Result<f64> {
        let mut grads = self.accumulator.take_mean()?;
        let parameters = self.accumulator.parameters();
        let norm = match self.clipping {
            Some(max_norm) => clip_by_global_norm(&mut grads, parameters, max_norm)?,
            None => global_norm(&grads, parameters)?,
        };
        if !norm.is_finite() {
            let parameter = first_non_finite(&grads, parameters)?.unwrap_or_default().to_owned();
            let (step, last_checkpoint) = (self.steps + 1, self.last_checkpoint.clone());
            return Err(TrainingError::NonFiniteGradient { step, parameter, last_checkpoint }.into());
        }
        self.optimizer.step(&grads, self.schedule.factor(self.steps))?;
        if let Some(allocator) = &mut self.allocator {
            allocator.allocate(usize::try_from(self.steps).unwrap_or(usize::MAX), &grads)?;
        }
        self.steps += 1;
        Ok(norm)
    }
}

/// The loss as a number.
fn scalar(loss: &Tensor) -> candle_core::Result<f64> {
    if loss.elem_count() != 1 {
        candle_core::bail!("a loss is one number, and this one has shape {:?}", loss.dims())
    }
    let loss = loss.detach().reshape(())?;
    // Not every device has f64.
    match loss.dtype() {
        DType::F64 => loss.to_scalar(),
        _ => Ok(f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?)),
    }
}
