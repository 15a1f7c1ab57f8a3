//! Checks gradients against the slopes of the loss: an audit finds a gradient that is missing, this one that is wrong.

use std::fmt;

use candle_core::backprop::GradStore;
use candle_core::{DType, Result as CandleResult, Tensor, Var, bail};

use super::audit::audit;
use super::gradients::{global_norm, sum_of_squares};
use crate::error::{Error, Result, TrainingError};
use crate::manage::trainable_parameters;
use crate::module::Injectable;
use crate::ops::is_half;
use crate::ops::random::{normal, stream};

/// How many directions are random. Along the gradient only, a wrong one can look right.
const RANDOM: usize = 4;

/// What a step along a line tells about the gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Slope {
    /// What the gradients say: their product with the direction, whose length is 1.
    pub gradients: f64,
    /// What the loss does, from differences on both sides.
    pub measured: f64,
    /// How far the measured slope may be off.
    pub uncertainty: f64,
    /// The slope that a random direction has on average.
    typical: f64,
}

impl Slope {
    /// The difference beyond the uncertainty, as a share of the slope, or of a typical one if that is larger.
    pub fn error(&self) -> f64 {
        let beyond = ((self.gradients - self.measured).abs() - self.uncertainty).max(0.0);
        let scale = self.gradients.abs().max(self.measured.abs()).max(self.typical);
        if beyond == 0.0 { 0.0 } else { beyond / scale }
    }
}

/// What [`check_gradients`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct GradientCheck {
    slopes: Vec<Slope>,
}

impl GradientCheck {
    /// The slope along the gradient, and those along random directions.
    pub fn slopes(&self) -> &[Slope] {
        &self.slopes
    }

    /// The largest [error](Slope::error) of a slope.
    pub fn largest_error(&self) -> f64 {
        self.slopes.iter().map(Slope::error).fold(0.0, f64::max)
    }

    /// An error if a slope is further off than `tolerance`, such as 0.01.
    ///
    /// # Errors
    /// [`TrainingError::WrongGradients`], which names the slopes.
    pub fn ensure_within(&self, tolerance: f64) -> Result<()> {
        // A NaN is not within anything.
        if self.slopes.iter().all(|slope| slope.error() <= tolerance) {
            return Ok(());
        }
        Err(Error::Training(TrainingError::WrongGradients { tolerance, report: self.to_string() }))
    }
}

impl fmt::Display for GradientCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, slope) in self.slopes.iter().enumerate() {
            let separator = if place == 0 { "" } else { "\n" };
            let name = if place == 0 {
                "along the gradient".to_owned()
            } else {
                format!("random direction {place}")
            };
            write!(
                f,
                "{separator}{name}: {:.4e} by the gradients, {:.4e} measured, uncertain by {:.1e}",
                slope.gradients, slope.measured, slope.uncertainty
            )?;
        }
        Ok(())
    }
}

/// Compares the gradients of everything that trains with slopes of the loss, along the gradient and along random directions.
///
/// `loss` computes the loss of one batch, a scalar; it is called 22 times, and has to return the same each time: switch dropout off. The
/// variables change meanwhile, and have their values again afterwards. Gradients of f64 are checked more sharply than those of f32; where
/// factors are half precision, rounding hides slopes: leave `autocast_adapter_dtype` on.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_nn::{Linear, Module};
/// use peft_runtime::prelude::*;
/// use peft_runtime::train::check_gradients;
///
/// #[derive(Injectable)]
/// struct Model {
///     layer: Adapted<Linear>,
/// }
///
/// let weight = Tensor::rand(-1f32, 1.0, (3, 4), &Device::Cpu)?;
/// let mut model = Model { layer: Adapted::new(Linear::new(weight, None)) };
/// let config = LoraConfig::new(2, 4.0).with_targets("all-linear").with_init(LoraInit::Random);
/// model.inject_adapter(&config, "default")?;
/// let x = Tensor::rand(-1f32, 1.0, (5, 4), &Device::Cpu)?;
///
/// check_gradients(&model, || model.layer.forward(&x)?.sqr()?.mean_all())?.ensure_within(0.01)?;
///
/// // What is detached counts as a constant: half of this loss's gradient is missing.
/// let halved = || {
///     let y = model.layer.forward(&x)?;
///     (&y * y.detach())?.mean_all()
/// };
/// assert!(check_gradients(&model, halved)?.ensure_within(0.01).is_err());
/// # Ok::<(), peft_runtime::Error>(())
/// ```
///
/// # Errors
/// If something that trains has no gradient, if a variable is of half precision, if the loss is not finite or differs from call to call, or
/// if it cannot be computed.
pub fn check_gradients<M: Injectable + ?Sized>(
    model: &M,
    mut loss: impl FnMut() -> CandleResult<Tensor>,
) -> Result<GradientCheck> {
    let parameters = trainable_parameters(model);
    if let Some((name, var)) = parameters.iter().find(|(_, var)| is_half(var.dtype())) {
        return Err(Error::Training(TrainingError::HalfVariable {
            name: name.clone(),
            dtype: var.dtype().as_str(),
        }));
    }
    let value = loss()?;
    let grads = value.backward()?;
    audit(model, &grads).ensure_complete()?;
    let norm = global_norm(&grads, &parameters)?;
    let line = Line::new(&parameters, scalar(&value)?)?;
    let again = scalar(&loss()?)?;
    if again != line.loss || !again.is_finite() {
        return Err(Error::Training(TrainingError::ChangingLoss { first: line.loss, second: again }));
    }
    let typical = norm / (line.elements().max(1) as f64).sqrt();
    let directions = (0..=RANDOM).map(|draw| match draw {
        0 => along(&parameters, &grads),
        _ => random(&parameters, draw as u64),
    });
    let slopes = directions.map(|direction| {
        let direction = unit(direction?)?;
        let gradients = product(&parameters, &grads, &direction)?;
        let (measured, uncertainty) = line.slope(&direction, &mut loss)?;
        Ok(Slope { gradients, measured, uncertainty, typical })
    });
    Ok(GradientCheck { slopes: slopes.collect::<Result<_>>()? })
}

fn scalar(loss: &Tensor) -> CandleResult<f64> {
    loss.to_dtype(DType::F64)?.to_scalar::<f64>()
}

/// The values of all variables, which they get back when this is dropped.
struct Line<'a> {
    parameters: &'a [(String, Var)],
    values: Vec<Tensor>,
    loss: f64,
}

impl<'a> Line<'a> {
    fn new(parameters: &'a [(String, Var)], loss: f64) -> CandleResult<Self> {
        let values = parameters.iter().map(|(_, var)| var.as_tensor().copy()).collect::<CandleResult<_>>()?;
        Ok(Self { parameters, values, loss })
    }

    fn elements(&self) -> usize {
        self.values.iter().map(Tensor::elem_count).sum()
    }

    /// The slope along a direction, and how far it may be off.
    fn slope(
        &self,
        direction: &[Tensor],
        loss: &mut impl FnMut() -> CandleResult<Tensor>,
    ) -> CandleResult<(f64, f64)> {
        let exact = self.parameters.iter().all(|(_, var)| var.dtype() == DType::F64);
        let epsilon = if exact { f64::EPSILON } else { f64::from(f32::EPSILON) };
        // Errors of rounding and of curvature are about equal there.
        let size = self.values.iter().map(sum_of_squares).sum::<CandleResult<f64>>()?.sqrt();
        let step = epsilon.cbrt() * if size > 0.0 { size } else { 1.0 };
        let mut difference = |step: f64| {
            let (ahead, behind) = (self.at(step, direction, loss)?, self.at(-step, direction, loss)?);
            Ok::<_, candle_core::Error>((ahead - behind) / (2.0 * step))
        };
        let (whole, half) = (difference(step)?, difference(step / 2.0)?);
        let rounding = 4.0 * epsilon * self.loss.abs() / step;
        // Richardson: the errors of the differences are as 4 to 1.
        Ok(((4.0 * half - whole) / 3.0, (half - whole).abs() / 3.0 + rounding))
    }

    /// The loss at a distance.
    fn at(
        &self,
        step: f64,
        direction: &[Tensor],
        loss: &mut impl FnMut() -> CandleResult<Tensor>,
    ) -> CandleResult<f64> {
        for ((_, var), (value, direction)) in self.parameters.iter().zip(self.values.iter().zip(direction)) {
            var.set(&(value + (direction * step)?)?)?;
        }
        let value = scalar(&loss()?);
        self.restore()?;
        value
    }

    fn restore(&self) -> CandleResult<()> {
        self.parameters.iter().zip(&self.values).try_for_each(|((_, var), value)| var.set(value))
    }
}

impl Drop for Line<'_> {
    /// Also after an error, or a panic of the loss.
    fn drop(&mut self) {
        // The shapes are those of the variables, so this can fail only where the device does.
        let _ = self.restore();
    }
}

/// The gradient of each variable.
fn along(parameters: &[(String, Var)], grads: &GradStore) -> CandleResult<Vec<Tensor>> {
    let of = |(_, var): &(String, Var)| match grads.get(var) {
        Some(grad) => grad.detach().to_dtype(var.dtype()),
        None => var.zeros_like(),
    };
    parameters.iter().map(of).collect()
}

fn random(parameters: &[(String, Var)], draw: u64) -> CandleResult<Vec<Tensor>> {
    let of = |(name, var): &(String, Var)| {
        normal(&mut stream(0, name, draw), 1.0, var.dims(), var.dtype(), var.device())
    };
    parameters.iter().map(of).collect()
}

/// The direction with a length of 1, unless it is zero.
fn unit(direction: Vec<Tensor>) -> CandleResult<Vec<Tensor>> {
    let length = direction.iter().map(sum_of_squares).sum::<CandleResult<f64>>()?.sqrt();
    if length == 0.0 {
        return Ok(direction);
    }
    if !length.is_finite() {
        bail!("the gradient is NaN or infinite")
    }
    direction.iter().map(|part| part / length).collect()
}

fn product(parameters: &[(String, Var)], grads: &GradStore, direction: &[Tensor]) -> CandleResult<f64> {
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64);
    let of = |((_, var), direction): (&(String, Var), &Tensor)| match grads.get(var) {
        Some(grad) => scalar(&(wide(grad)? * wide(direction)?)?.sum_all()?),
        None => Ok(0.0),
    };
    parameters.iter().zip(direction).map(of).sum()
}
