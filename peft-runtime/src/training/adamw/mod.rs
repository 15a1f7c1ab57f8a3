//! AdamW: Adam with decoupled weight decay. <https://arxiv.org/abs/1711.05101>

mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use super::group::{ParameterGroup, check};
use super::optimizer::Optimizer;
use crate::error::{Error, OptimizerError, Result};
use crate::manage::trainable_parameters;
use crate::module::Injectable;
use crate::ops::adamw::{Coefficients, Moments, moments_dtype, step_in_place, step_on_device};

/// AdamW as PyTorch computes it, with parameter groups.
///
/// In main memory, the first moments of all variables lie in one buffer and the second moments in another, and a step
/// is one pass over each variable, which it updates in place. Variables in half precision have moments in f32.
///
/// ```
/// use candle_core::{Device, Var};
/// use peft_runtime::train::{AdamW, Optimizer, ParameterGroup};
///
/// let x = Var::new(&[3f32, -2.], &Device::Cpu)?;
/// let group = ParameterGroup::new("all", vec![("x".to_owned(), x.clone())], 0.1);
/// let mut optimizer = AdamW::new(vec![group])?;
/// for _ in 0..200 {
///     let grads = x.sqr()?.sum_all()?.backward()?;
///     optimizer.step(&grads, 1.0)?;
/// }
/// assert!(x.to_vec1::<f32>()?.iter().all(|x| x.abs() < 0.01));
/// # Ok::<(), peft_runtime::Error>(())
/// ```
#[derive(Debug)]
pub struct AdamW {
    groups: Vec<ParameterGroup>,
    options: AdamWOptions,
    parameters: Vec<Parameter>,
    /// The moments of variables in main memory, in f32.
    narrow: Flat<f32>,
    /// The same for f64 variables.
    wide: Flat<f64>,
}

/// The settings of [`AdamW`] that all groups share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    betas: (f64, f64),
    eps: f64,
    rule: UpdateRule,
}

/// Where weight decay and ε come in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpdateRule {
    /// PyTorch's: weights decay before the step, ε is added to the corrected second moment.
    #[default]
    PyTorch,
    /// That of transformers' former AdamW, which PEFT's LoRA-FA uses: weights decay after the step, ε is added before the
    /// correction.
    Transformers,
}

#[derive(Debug)]
struct Parameter {
    name: String,
    var: Var,
    /// The number of its group.
    group: usize,
    /// How many steps have changed it.
    steps: u64,
    place: Place,
}

/// Where the moments of a variable are.
#[derive(Debug)]
enum Place {
    Narrow(Range<usize>),
    Wide(Range<usize>),
    Device(Tensor, Tensor),
}

/// The moments of many variables, one after the other.
#[derive(Debug, Default)]
struct Flat<S> {
    first: Vec<S>,
    second: Vec<S>,
}

impl<S: Clone + Default> Flat<S> {
    /// Room for `count` more elements, which are zero.
    fn grow(&mut self, count: usize) -> Range<usize> {
        let start = self.first.len();
        self.first.resize(start + count, S::default());
        self.second.resize(start + count, S::default());
        start..start + count
    }

    fn moments(&mut self, range: &Range<usize>) -> Moments<'_, S> {
        Moments { first: &mut self.first[range.clone()], second: &mut self.second[range.clone()] }
    }
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl AdamWOptions {
    /// PyTorch's: β 0.9 and 0.999, ε 1e-8.
    pub fn new() -> Self {
        Self { betas: (0.9, 0.999), eps: 1e-8, rule: UpdateRule::PyTorch }
    }

    /// How much of the running means of the gradient and of its square each step keeps.
    #[must_use]
    pub fn with_betas(mut self, beta1: f64, beta2: f64) -> Self {
        self.betas = (beta1, beta2);
        self
    }

    /// What keeps the divisor away from zero.
    #[must_use]
    pub fn with_eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }

    /// Where weight decay and ε come in.
    #[must_use]
    pub fn with_rule(mut self, rule: UpdateRule) -> Self {
        self.rule = rule;
        self
    }

    fn check(&self) -> Result<()> {
        let betas = [("beta1", self.betas.0), ("beta2", self.betas.1)];
        if let Some((setting, value)) = betas.into_iter().find(|(_, beta)| !(0.0..1.0).contains(beta)) {
            return Err(Error::Setting { setting, value, expected: "at least 0 and below 1" });
        }
        let eps = self.eps;
        if !(eps.is_finite() && eps >= 0.0) {
            let expected = "a finite number and at least 0";
            return Err(Error::Setting { setting: "eps", value: eps, expected });
        }
        Ok(())
    }

    /// The coefficients of a variable's step `step`, counted from 1.
    fn coefficients(&self, step: u64, learning_rate: f64, weight_decay: f64) -> Coefficients<f64> {
        let (beta1, beta2) = self.betas;
        let step = step as f64;
        let (correction1, correction2) = (1.0 - beta1.powf(step), (1.0 - beta2.powf(step)).sqrt());
        let (decay, step_size) = (1.0 - learning_rate * weight_decay, learning_rate / correction1);
        let common = Coefficients {
            decay_before: 1.0,
            decay_after: 1.0,
            towards_gradient: 1.0 - beta1,
            beta2,
            towards_square: 1.0 - beta2,
            step_size,
            correction: correction2,
            eps: self.eps,
        };
        match self.rule {
            UpdateRule::PyTorch => Coefficients { decay_before: decay, ..common },
            UpdateRule::Transformers => {
                let step_size = learning_rate * correction2 / correction1;
                Coefficients { decay_after: decay, step_size, correction: 1.0, ..common }
            }
        }
    }
}

impl AdamW {
    /// An optimiser over these groups with PyTorch's settings.
    ///
    /// # Errors
    /// [`Error::Optimizer`] if a value of a group is out of range, a name or variable occurs twice, or a variable does
    /// not hold floats; [`Error::Setting`] if a setting that all groups share is out of range.
    pub fn new(groups: Vec<ParameterGroup>) -> Result<Self> {
        Self::with_options(groups, AdamWOptions::new())
    }

    /// An optimiser over these groups with your own settings.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(groups: Vec<ParameterGroup>, options: AdamWOptions) -> Result<Self> {
        options.check()?;
        check(&groups)?;
        let (mut narrow, mut wide) = (Flat::default(), Flat::default());
        let mut parameters = Vec::new();
        for (number, group) in groups.iter().enumerate() {
            for (name, var) in group.parameters() {
                let dtype = moments_dtype(var.dtype());
                let place = match (var.device().is_cpu(), dtype) {
                    (true, DType::F64) => Place::Wide(wide.grow(var.elem_count())),
                    (true, _) => Place::Narrow(narrow.grow(var.elem_count())),
                    (false, _) => {
                        let zeros = Tensor::zeros(var.shape(), dtype, var.device())?;
                        Place::Device(zeros.clone(), zeros)
                    }
                };
                parameters.push(Parameter {
                    name: name.clone(),
                    var: var.clone(),
                    group: number,
                    steps: 0,
                    place,
                });
            }
        }
        Ok(Self { groups, options, parameters, narrow, wide })
    }

    /// An optimiser over everything in a model that trains, in one group with PyTorch's settings.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn for_model<M: Injectable + ?Sized>(model: &M, learning_rate: f64) -> Result<Self> {
        Self::new(vec![ParameterGroup::new("all", trainable_parameters(model), learning_rate)])
    }

    /// The groups.
    pub fn groups(&self) -> &[ParameterGroup] {
        &self.groups
    }

    /// The settings that all groups share.
    pub fn options(&self) -> AdamWOptions {
        self.options
    }
}

impl Parameter {
    /// An error if the gradient does not fit.
    fn check(&self, grads: &GradStore) -> Result<()> {
        match grads.get(&self.var) {
            Some(grad) if grad.dims() != self.var.dims() => {
                let (expected, found) = (self.var.dims().to_vec(), grad.dims().to_vec());
                Err(OptimizerError::GradientShape { parameter: self.name.clone(), expected, found }.into())
            }
            _ => Ok(()),
        }
    }
}

impl Optimizer for AdamW {
    fn parameters(&self) -> Vec<(String, Var)> {
        self.parameters.iter().map(|parameter| (parameter.name.clone(), parameter.var.clone())).collect()
    }

    fn learning_rate(&self) -> f64 {
        self.groups.first().map_or(0.0, ParameterGroup::learning_rate)
    }

    fn step(&mut self, grads: &GradStore, factor: f64) -> Result<()> {
        self.parameters.iter().try_for_each(|parameter| parameter.check(grads))?;
        let Self { groups, options, parameters, narrow, wide } = self;
        for parameter in parameters {
            let Parameter { var, group, steps, place, .. } = parameter;
            let Some(grad) = grads.get(var).filter(|grad| grad.elem_count() > 0) else { continue };
            let grad = grad.detach().to_dtype(var.dtype())?.contiguous()?;
            let (learning_rate, weight_decay) =
                (groups[*group].learning_rate(), groups[*group].weight_decay());
            let coefficients = options.coefficients(*steps + 1, learning_rate * factor, weight_decay);
            match place {
                Place::Narrow(range) => step_in_place(var, &grad, narrow.moments(range), coefficients)?,
                Place::Wide(range) => step_in_place(var, &grad, wide.moments(range), coefficients)?,
                Place::Device(first, second) => {
                    (*first, *second) = step_on_device(var, &grad, (&*first, &*second), coefficients)?;
                }
            }
            *steps += 1;
        }
        Ok(())
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.saved()
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.restore(state)
    }
}
