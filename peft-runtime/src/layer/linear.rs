//! candle's `Linear`.

use candle_core::Tensor;
use candle_nn::Linear;

use super::parameters::{map_weight_and_bias, weight_and_bias};
use super::{BaseLayer, LayerInput, ParameterMap, python_bool};
use crate::adapter::{Geometry, LowRank};
use crate::error::Result;
use crate::ops::linear::linear;
use crate::ops::linear::low_rank::{can_fuse, linear_low_rank};
use crate::ops::linear::residual::linear_add;
use crate::schema::{Family, LayerKind};

impl BaseLayer for Linear {
    const KIND: LayerKind = LayerKind::new("Linear", Family::Linear);

    fn geometry(&self) -> Geometry {
        match *self.weight().dims() {
            [out_features, in_features] => Geometry::Linear { in_features, out_features, transposed: false },
            _ => Geometry::Opaque,
        }
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        weight_and_bias(self.weight(), self.bias())
    }

    fn map_parameters(&self, map: &mut ParameterMap<'_>) -> Result<Self> {
        let (weight, bias) = map_weight_and_bias(self.weight(), self.bias(), map)?;
        Ok(Self::new(weight, bias))
    }

    fn forward_base(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        linear(x, self.weight(), self.bias())
    }

    fn forward_low_rank(&self, x: &Tensor, terms: &LowRank) -> Option<candle_core::Result<Tensor>> {
        let (weight, bias) = (self.weight(), self.bias());
        can_fuse(x, weight, bias, terms).then(|| linear_low_rank(x, weight, bias, terms))
    }

    fn forward_sum(
        &self,
        input: LayerInput<'_>,
        terms: Option<&LowRank>,
        residual: &Tensor,
    ) -> Option<candle_core::Result<Tensor>> {
        linear_add(input, self.weight(), self.bias(), terms, residual).transpose()
    }

    fn describe(&self) -> String {
        let geometry = self.geometry();
        format!(
            "Linear(in_features={}, out_features={}, bias={})",
            geometry.in_features(),
            geometry.out_features(),
            python_bool(self.bias().is_some())
        )
    }
}
