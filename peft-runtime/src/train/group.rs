//! Parameter groups: variables that train with one learning rate and one weight decay.

use std::collections::BTreeSet;

use candle_core::Var;

use crate::error::{Error, Result};
use crate::ops::place;

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
    /// `learning_rate` is the one before the schedule. Names of parameters are what checkpoints know them by.
    pub fn new(name: impl Into<String>, parameters: Vec<(String, Var)>, learning_rate: f64) -> Self {
        Self { name: name.into(), parameters, learning_rate, weight_decay: WEIGHT_DECAY }
    }

    /// The share of its value that a weight loses in each step, times the learning rate.
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

/// An error unless every value can be trained with, and every variable and name comes once.
pub(super) fn check(groups: &[ParameterGroup]) -> Result<()> {
    let mut names = BTreeSet::new();
    let mut variables: Vec<&Var> = Vec::new();
    for group in groups {
        let values = [("learning_rate", group.learning_rate), ("weight_decay", group.weight_decay)];
        if let Some((field, value)) =
            values.into_iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0))
        {
            let reason = format!("it is {value} in the group `{}`; it has to be 0 or more", group.name);
            return Err(Error::Config { field, reason });
        }
        for (name, var) in &group.parameters {
            if !var.dtype().is_float() {
                let reason = format!("`{name}` holds {:?}, and only floats train", var.dtype());
                return Err(Error::Config { field: "parameters", reason });
            }
            if !names.insert(name) {
                return Err(Error::Config { field: "parameters", reason: format!("`{name}` comes twice") });
            }
            variables.push(var);
        }
    }
    let mut places: Vec<_> = variables.iter().map(|var| place(var)).collect();
    let count = places.len();
    places.sort_unstable();
    places.dedup();
    if places.len() != count {
        let reason = "one variable has two names, so that it would be changed twice in a step".to_owned();
        return Err(Error::Config { field: "parameters", reason });
    }
    Ok(())
}
