//! The trainer's checkpoints: written when they are due, and gone on from.

use std::path::PathBuf;

use super::Trainer;
use crate::error::{Error, Result, TrainingError};
use crate::module::Injectable;
use crate::training::checkpoint::{Checkpoints, Contents, TrainingCheckpoint, trained};
use crate::training::optimizer::Optimizer;
use crate::training::training_state::TrainingState;

impl<O: Optimizer> Trainer<O> {
    pub(super) fn save_if_due<M: Injectable + ?Sized>(&mut self, model: &M) -> Result<Option<PathBuf>> {
        let due = |(_, every): &(Checkpoints, u64)| self.steps.is_multiple_of(*every);
        if self.checkpoints.as_ref().is_some_and(due) { self.save(model) } else { Ok(None) }
    }

    /// Writes a checkpoint now, whether one is due or not; `None` if the trainer has no folder for them.
    ///
    /// # Errors
    /// [`TrainingError::Checkpoint`] in the middle of an accumulation, or if the folder has one that is further than the run;
    /// [`Error::Io`].
    pub fn save<M: Injectable + ?Sized>(&mut self, model: &M) -> Result<Option<PathBuf>> {
        let Some((checkpoints, _)) = &self.checkpoints else { return Ok(None) };
        if self.accumulator.count() > 0 {
            let reason = format!(
                "{} of {} losses of a step are accumulated, and a checkpoint does not hold them",
                self.accumulator.count(),
                self.accumulation
            );
            return Err(Error::Training(TrainingError::Checkpoint {
                path: checkpoints.folder().to_owned(),
                reason,
            }));
        }
        let mut state = TrainingState::of(model, self.steps, self.batches, self.schedule);
        state.notes = self.notes.clone();
        let parameters = trained(model, &self.optimizer);
        let contents = Contents {
            state,
            parameters: &parameters,
            optimizer: self.optimizer.state()?,
            allocator: self.allocator.as_ref().map(|allocator| allocator.state()).transpose()?,
        };
        let folder = checkpoints.save(model, contents)?;
        self.last_checkpoint = Some(folder.clone());
        Ok(Some(folder))
    }

    /// Goes on from the newest checkpoint in the trainer's folder; `None` if there is none. What follows is what would
    /// have followed without the break, to the bit.
    ///
    /// Model, adapters, optimiser and allocator are made as at the start of the run. The schedule is the trainer's own, which
    /// may be another than that of the checkpoint's run. Losses that were accumulated are forgotten.
    ///
    /// # Errors
    /// If there are checkpoints and none can be read; as [`resume_from`](Self::resume_from).
    pub fn resume<M: Injectable + ?Sized>(&mut self, model: &M) -> Result<Option<TrainingCheckpoint>> {
        let Some((checkpoints, _)) = &self.checkpoints else { return Ok(None) };
        let Some(checkpoint) = checkpoints.latest()? else { return Ok(None) };
        self.resume_from(model, &checkpoint)?;
        Ok(Some(checkpoint))
    }

    /// Goes on from this checkpoint.
    ///
    /// # Errors
    /// [`TrainingError::Tensors`] if it does not fit model, optimiser or allocator; nothing is changed then.
    pub fn resume_from<M: Injectable + ?Sized>(
        &mut self,
        model: &M,
        checkpoint: &TrainingCheckpoint,
    ) -> Result<()> {
        checkpoint.restore(model, &mut self.optimizer, self.allocator.as_deref_mut())?;
        self.accumulator.clear();
        self.steps = checkpoint.state().step;
        self.batches = checkpoint.state().batches;
        self.last_checkpoint = Some(checkpoint.folder().to_owned());
        Ok(())
    }
}
