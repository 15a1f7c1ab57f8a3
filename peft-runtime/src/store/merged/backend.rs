//! Merged weights as what candle's models are loaded from.

use candle_core::{DType, Device, Result as CandleResult, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;

use super::MergedWeights;

impl<B: SimpleBackend + 'static> SimpleBackend for MergedWeights<B> {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        hints: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> CandleResult<Tensor> {
        let read = || self.base.get(shape.clone(), name, hints, dtype, device);
        let tensor = self.tensor(name, dtype, device, &read)?;
        if *tensor.shape() == shape {
            return Ok(tensor);
        }
        let msg = format!("the shape of `{name}` does not fit the model");
        Err(candle_core::Error::UnexpectedShape { msg, expected: shape, got: tensor.shape().clone() }.bt())
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> CandleResult<Tensor> {
        let read = || self.base.get_unchecked(name, dtype, device);
        Ok(self.tensor(name, dtype, device, &read)?)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.has(name)
    }
}
