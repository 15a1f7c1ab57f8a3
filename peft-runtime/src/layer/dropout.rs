//! The model's own dropout, which `train()` and `eval()` turn on and off.

use candle_core::{Result, Tensor, bail};
use candle_nn::Module;

use super::scope;
use crate::ops::dropout::{DropoutMask, dropout};
use crate::ops::random::DropoutStream;
use crate::path::ModulePath;

/// A layer of the model that drops elements at random and scales those it keeps by `1 / (1 - probability)`.
///
/// A new layer does nothing; [`train()`](crate::PeftModel::train) of the model it is part of turns it on, and
/// [`eval()`](crate::PeftModel::eval) turns it off. The masks come from a random stream determined by the layer's path
/// and the seed of the model's first adapter; a training checkpoint stores the position in it. A clone continues from
/// the layer's position, independently.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Linear, Module};
/// use peft_runtime::nn::Dropout;
/// use peft_runtime::prelude::*;
///
/// #[derive(Injectable)]
/// struct Model {
///     linear: Adapted<Linear>,
///     dropout: Dropout,
/// }
///
/// let linear = Linear::new(Tensor::ones((4, 3), DType::F32, &Device::Cpu)?, None);
/// let mut model = Model { linear: linear.into(), dropout: Dropout::new(0.5)? };
/// let forward = |model: &Model, x: &Tensor| model.dropout.forward(&model.linear.forward(x)?)?.to_vec2::<f32>();
///
/// let x = Tensor::ones((2, 3), DType::F32, &Device::Cpu)?;
/// assert_eq!(forward(&model, &x)?, [[3f32; 4]; 2]);
/// model.train();
/// assert!(forward(&model, &x)?.concat().iter().all(|y| [0.0, 6.0].contains(y)));
/// model.eval();
/// assert_eq!(forward(&model, &x)?, [[3f32; 4]; 2]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Dropout {
    probability: f64,
    training: bool,
    masks: DropoutStream,
}

impl Dropout {
    /// A layer that drops each element with `probability` in training mode.
    ///
    /// # Errors
    /// If the probability is not at least 0 and below 1.
    pub fn new(probability: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&probability) {
            bail!("the probability of dropout is {probability}; it must be at least 0 and below 1")
        }
        Ok(Self { probability, training: false, masks: DropoutStream::new(0, String::new()) })
    }

    /// The probability with which an element is dropped in training mode.
    pub fn probability(&self) -> f64 {
        self.probability
    }

    /// Whether the layer drops elements.
    pub fn training(&self) -> bool {
        self.training
    }

    /// The mask of one pass, for an op that drops elements itself, as [`attention`](crate::nn::attention) does; `None` where
    /// nothing is dropped.
    ///
    /// # Errors
    /// If a block of [`recomputed`](crate::nn::recomputed) draws more masks when it runs again.
    pub fn draw(&self) -> Result<Option<DropoutMask>> {
        // Inputs are recorded without dropout.
        if !self.training || self.probability == 0.0 || scope::records() {
            return Ok(None);
        }
        self.masks.mask(self.probability).map(Some)
    }

    /// Turns the layer at `path` on or off.
    pub(crate) fn set_training(&mut self, training: bool, path: &ModulePath) {
        self.training = training;
        self.masks.set_label(label(path));
    }

    /// Restarts at the first mask of the seed.
    pub(crate) fn set_seed(&mut self, seed: u64, path: &ModulePath) {
        self.masks = DropoutStream::new(seed, label(path));
    }

    /// The stream of the masks.
    pub(crate) fn masks(&self) -> &DropoutStream {
        &self.masks
    }
}

/// The name of the stream of the layer at `path`. Those of adapters begin with the adapter's name, which is never empty.
fn label(path: &ModulePath) -> String {
    format!("/{path}/dropout")
}

impl Module for Dropout {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.draw()? {
            Some(mask) => dropout(x, mask),
            None => Ok(x.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use candle_nn::Module;

    use super::Dropout;
    use crate::layer::record_inputs;

    #[test]
    fn only_probabilities_below_one_are_taken() {
        for wrong in [-0.1, 1.0, f64::NAN, f64::INFINITY] {
            let error = Dropout::new(wrong).unwrap_err().to_string();
            assert!(error.contains("must be at least 0 and below 1"), "{error}");
        }
        assert!(Dropout::new(0.0).is_ok());
    }

    #[test]
    fn masks_are_those_of_the_seed_and_the_path() {
        let ones = Tensor::ones(100, DType::F32, &Device::Cpu).unwrap();
        let draw = |seed, path: &str| {
            let mut dropout = Dropout::new(0.5).unwrap();
            dropout.set_seed(seed, &path.into());
            dropout.set_training(true, &path.into());
            dropout.forward(&ones).unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
    }

    #[test]
    fn nothing_is_dropped_and_no_mask_drawn_where_inputs_are_recorded_or_the_probability_is_zero() {
        let ones = Tensor::ones(100, DType::F32, &Device::Cpu).unwrap();
        for (probability, records) in [(0.5, true), (0.0, false)] {
            let mut dropout = Dropout::new(probability).unwrap();
            dropout.set_training(true, &"a".into());
            let run = || dropout.forward(&ones).unwrap();
            let y = if records { record_inputs("default", run).0 } else { run() };
            assert_eq!(y.to_vec1::<f32>().unwrap(), [1f32; 100]);
            assert_eq!(dropout.masks().position(), 0);
        }
    }
}
