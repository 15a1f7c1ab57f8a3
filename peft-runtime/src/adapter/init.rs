//! How a fresh adapter tensor gets its values.

use candle_core::{DType, Device, Tensor, Var};
use rand_chacha::ChaCha8Rng;

use crate::error::Result;
use crate::ops::random;

/// The initial values of a tensor.
#[non_exhaustive]
pub enum Init<'a> {
    /// The same value everywhere.
    Constant(f64),
    /// Uniform between minus and plus the bound.
    Uniform(f64),
    /// Normal with mean 0 and the given standard deviation.
    Normal(f64),
    /// Values that have to be computed, which is only done for tensors that no file supplies.
    Computed(&'a dyn Fn() -> Result<Tensor>),
}

impl Init<'_> {
    /// The uniform distribution PyTorch's linear layers and convolutions start from.
    pub(crate) fn kaiming(fan_in: usize) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a fan-in is far below 2^53")]
        let fan_in = fan_in.max(1) as f64;
        Self::Uniform(1.0 / fan_in.sqrt())
    }

    /// The same for a tensor of this shape, whose fan-in is the product of all dimensions but the first.
    pub(crate) fn kaiming_of(shape: &[usize]) -> Self {
        // A file may claim any rank; its tensors are compared with the shape later.
        Self::kaiming(shape.iter().skip(1).fold(1, |product, size| product.saturating_mul(*size)))
    }

    /// A variable with these initial values.
    pub(crate) fn draw(
        &self,
        rng: &mut ChaCha8Rng,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Var> {
        Ok(match self {
            // Memory that the system hands out zeroed is not touched until it is used.
            Self::Constant(0.0) => Var::zeros(shape, dtype, device)?,
            Self::Constant(value) => {
                Var::from_tensor(&Tensor::full(*value, shape, device)?.to_dtype(dtype)?)?
            }
            Self::Uniform(bound) => random::uniform_variable(rng, *bound, shape, dtype, device)?,
            Self::Normal(deviation) => random::normal_variable(rng, *deviation, shape, dtype, device)?,
            Self::Computed(compute) => Var::from_tensor(&compute()?.to_dtype(dtype)?.to_device(device)?)?,
        })
    }
}
