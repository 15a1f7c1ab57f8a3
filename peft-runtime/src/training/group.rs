//! Parameter groups: variables that train with one learning rate and one weight decay.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Var;

use crate::error::{OptimizerError, Result};
use crate::ops::storage_address;

/// Variables that train with one learning rate and one weight decay.
///
/// ```
/// use candle_core::{DType, Device, Var};
/// use peft_runtime::train::{AdamW, ParameterGroup};
///
/// let head = Var::zeros((2, 3), DType::F32, &Device::Cpu)?;
/// let bias = Var::zeros(2, DType::F32, &Device::Cpu)?;
/// let optimizer = AdamW::new(vec![
///     ParameterGroup::new("weights", vec![("head.weight".to_owned(), head)], 1e-3),
///     ParameterGroup::new("biases", vec![("head.bias".to_owned(), bias)], 2e-3).with_weight_decay(0.0),
/// ])?;
/// # let _ = optimizer;
/// # Ok::<(), peft_runtime::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ParameterGroup {
    name: String,
    parameters: Vec<(String, Var)>,
    learning_rate: f64,
    weight_decay: f64,
}

/// PyTorch's weight decay for AdamW.
const WEIGHT_DECAY: f64 = 0.01;

impl ParameterGroup {
    /// A group called `name` with PyTorch's weight decay, 0.01.
    ///
    /// `learning_rate` is the one before the schedule. Checkpoints identify parameters by their names.
    pub fn new(name: impl Into<String>, parameters: Vec<(String, Var)>, learning_rate: f64) -> Self {
        Self { name: name.into(), parameters, learning_rate, weight_decay: WEIGHT_DECAY }
    }

    /// In each step, a weight loses this share of its value times the learning rate.
    #[must_use]
    pub fn with_weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = weight_decay;
        self
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The variables, by name.
    pub fn parameters(&self) -> &[(String, Var)] {
        &self.parameters
    }

    /// The learning rate before the schedule.
    pub fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    /// The weight decay.
    pub fn weight_decay(&self) -> f64 {
        self.weight_decay
    }
}

/// An error unless every value can be trained with, and every variable and name occurs only once.
pub(super) fn check(groups: &[ParameterGroup]) -> Result<(), OptimizerError> {
    let mut names = BTreeSet::new();
    let mut places = BTreeMap::new();
    for group in groups {
        let values = [("learning_rate", group.learning_rate), ("weight_decay", group.weight_decay)];
        if let Some((setting, value)) =
            values.into_iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0))
        {
            return Err(OptimizerError::Setting { group: group.name.clone(), setting, value });
        }
        for (name, var) in &group.parameters {
            if !var.dtype().is_float() {
                return Err(OptimizerError::NotFloat { name: name.clone(), dtype: var.dtype().as_str() });
            }
            if !names.insert(name) {
                return Err(OptimizerError::DuplicateName { name: name.clone() });
            }
            if let Some(first) = places.insert(storage_address(var), name) {
                return Err(OptimizerError::DuplicateVariable { first: first.clone(), second: name.clone() });
            }
        }
    }
    Ok(())
}
