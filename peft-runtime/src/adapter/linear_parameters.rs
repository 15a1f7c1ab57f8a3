//! What merging changes of a layer.

use candle_core::Tensor;

use crate::ops::widened;

/// A weight and a bias, which is all that merging changes.
#[derive(Clone, Debug)]
pub struct LinearParameters {
    /// The weight in the shape the layer stores.
    pub weight: Tensor,
    /// The bias, if the layer has one.
    pub bias: Option<Tensor>,
}

impl LinearParameters {
    /// The parameters in f32 instead of half precision, for sums that are rounded once.
    pub(crate) fn widened(&self) -> candle_core::Result<Self> {
        let bias = self.bias.as_ref().map(widened).transpose()?;
        Ok(Self { weight: widened(&self.weight)?, bias })
    }

    /// The parameters in the dtypes that those of `own` have.
    pub(crate) fn rounded_as(&self, own: &Self) -> candle_core::Result<Self> {
        let bias = match (&self.bias, &own.bias) {
            (Some(bias), Some(own)) => Some(bias.to_dtype(own.dtype())?),
            (bias, _) => bias.clone(),
        };
        Ok(Self { weight: self.weight.to_dtype(own.weight.dtype())?, bias })
    }
}
