//! Ranks that move between layers while an adapter trains.

use std::collections::BTreeMap;
use std::fmt::Debug;

use candle_core::Tensor;
use candle_core::backprop::GradStore;

use crate::error::Result;
use crate::path::ModulePath;

/// What a method that distributes ranks adds to training; [`Trainer`](crate::train::Trainer) calls it.
pub trait RankAllocation: Debug {
    /// How many ranks all layers together may have.
    fn budget(&self) -> usize;

    /// The importance that a rank had to exceed at the last cut, if ranks were cut.
    fn threshold(&self) -> Option<f64>;

    /// The number of ranks that each layer has kept.
    fn ranks(&self) -> Vec<(ModulePath, usize)>;

    /// A term that is added to each loss.
    ///
    /// # Errors
    /// If a device operation fails.
    fn loss_term(&self) -> Result<Tensor>;

    /// Moves ranks after a step of the optimiser, with the gradients of that step. Steps count from 0.
    ///
    /// # Errors
    /// If a tensor of the adapter has no gradient; nothing is changed then.
    fn allocate(&mut self, step: usize, grads: &GradStore) -> Result<()>;

    /// What a checkpoint has to store.
    ///
    /// # Errors
    /// If a device operation fails.
    fn state(&self) -> Result<BTreeMap<String, Tensor>>;

    /// An error if `state` does not fit this allocation; nothing is changed.
    ///
    /// # Errors
    /// [`TrainingError::Tensors`](crate::error::TrainingError::Tensors).
    fn check_state(&self, state: &BTreeMap<String, Tensor>) -> Result<()>;

    /// Loads what [`state`](Self::state) returned.
    ///
    /// # Errors
    /// [`TrainingError::Tensors`](crate::error::TrainingError::Tensors); nothing is changed then.
    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()>;
}
