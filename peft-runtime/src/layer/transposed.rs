//! The linear layer that stores its weight as `[in, out]`: GPT-2's `Conv1D`, PEFT's `fan_in_fan_out`.

use candle_core::Tensor;
use candle_nn::Module;

use super::parameters::{map_weight_and_bias, weight_and_bias};
use super::{BaseLayer, LayerInput, ParameterMap};
use crate::adapter::{Geometry, LowRank};
use crate::error::Result;
use crate::ops::linear::linear;
use crate::ops::linear::low_rank::{can_fuse, linear_low_rank};
use crate::ops::linear::residual::linear_add;
use crate::schema::{Family, LayerKind};

/// A linear layer with a weight of shape `[in, out]`: `y = x·W + b`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_nn::Module;
/// use peft_runtime::layer::TransposedLinear;
///
/// let weight = Tensor::new(&[[1f32, 3., 5.], [2., 4., 6.]], &Device::Cpu)?;
/// let layer = TransposedLinear::new(weight, None);
/// let y = layer.forward(&Tensor::new(&[[10f32, 100.]], &Device::Cpu)?)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[210., 430., 650.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TransposedLinear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl TransposedLinear {
    /// A layer with a weight of shape `[in, out]` and a bias of shape `[out]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// The weight, `[in, out]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for TransposedLinear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.forward_base(x)
    }
}

impl BaseLayer for TransposedLinear {
    const KIND: LayerKind = LayerKind::new("Conv1D", Family::Linear);

    fn geometry(&self) -> Geometry {
        match *self.weight.dims() {
            [in_features, out_features] => Geometry::Linear { in_features, out_features, transposed: true },
            _ => Geometry::Opaque,
        }
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        weight_and_bias(&self.weight, self.bias.as_ref())
    }

    fn map_parameters(&self, map: &mut ParameterMap<'_>) -> Result<Self> {
        let (weight, bias) = map_weight_and_bias(&self.weight, self.bias.as_ref(), map)?;
        Ok(Self::new(weight, bias))
    }

    fn forward_base(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        linear(x, &self.weight.t()?, self.bias.as_ref())
    }

    fn forward_low_rank(&self, x: &Tensor, terms: &LowRank) -> Option<candle_core::Result<Tensor>> {
        let bias = self.bias.as_ref();
        can_fuse(x, &self.weight, bias, terms).then(|| linear_low_rank(x, &self.weight.t()?, bias, terms))
    }

    fn forward_sum(
        &self,
        input: LayerInput<'_>,
        terms: Option<&LowRank>,
        residual: &Tensor,
    ) -> Option<candle_core::Result<Tensor>> {
        let sum = |weight: Tensor| linear_add(input, &weight, self.bias.as_ref(), terms, residual);
        self.weight.t().and_then(sum).transpose()
    }

    fn describe(&self) -> String {
        let geometry = self.geometry();
        format!("Conv1D(nf={}, nx={})", geometry.out_features(), geometry.in_features())
    }
}
