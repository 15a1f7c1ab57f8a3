//! What the training loop needs from an optimiser.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use crate::error::Result;

/// Updates variables by their gradients, and can be saved in the middle of a run.
pub trait Optimizer {
    /// The variables it changes, by name, in its order.
    fn parameters(&self) -> Vec<(String, Var)>;

    /// The learning rate of its first group, before the schedule.
    fn learning_rate(&self) -> f64;

    /// Changes every variable that has a gradient; all learning rates are multiplied by `factor`, the schedule's.
    ///
    /// # Errors
    /// If a gradient does not fit its variable; nothing is changed then.
    fn step(&mut self, grads: &GradStore, factor: f64) -> Result<()>;

    /// Everything that [`step`](Self::step) depends on besides variables, gradients and settings, under names of its
    /// own.
    ///
    /// # Errors
    /// If a device operation fails.
    fn state(&self) -> Result<BTreeMap<String, Tensor>>;

    /// Loads what [`state`](Self::state) returned for an optimiser over the same variables.
    ///
    /// # Errors
    /// [`TrainingError::Tensors`](crate::error::TrainingError::Tensors) if it is not exactly that; nothing is changed then.
    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()>;
}
