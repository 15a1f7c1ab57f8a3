//! candle's `LayerNorm` and `RmsNorm`, computed by ops that are differentiable.
//!
//! No method adapts a norm, but `modules_to_save` and `bias = "all"` train them, and candle's own forward passes cut
//! the gradient on contiguous inputs.

use candle_core::Tensor;
use candle_nn::{LayerNorm, RmsNorm};

use super::parameters::{map_weight_and_bias, weight_and_bias};
use super::{BaseLayer, ParameterMap, python_bool, python_float};
use crate::adapter::Geometry;
use crate::error::Result;
use crate::ops::norm::{layer_norm, rms_norm};
use crate::schema::{Family, LayerKind};

impl BaseLayer for LayerNorm {
    const KIND: LayerKind = LayerKind::new("LayerNorm", Family::Other);

    fn geometry(&self) -> Geometry {
        Geometry::Opaque
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        weight_and_bias(self.weight(), self.bias())
    }

    fn map_parameters(&self, map: &mut ParameterMap<'_>) -> Result<Self> {
        let (weight, bias) = map_weight_and_bias(self.weight(), self.bias(), map)?;
        Ok(match (bias, self.remove_mean()) {
            (Some(bias), _) => Self::new(weight, bias, self.eps()),
            (None, true) => Self::new_no_bias(weight, self.eps()),
            (None, false) => Self::rms_norm(weight, self.eps()),
        })
    }

    fn forward_base(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        if self.remove_mean() {
            layer_norm(x, self.weight(), self.bias(), self.eps())
        } else {
            rms_norm(x, self.weight(), self.eps())
        }
    }

    fn describe(&self) -> String {
        format!(
            "LayerNorm(({},), eps={}, elementwise_affine=True, bias={})",
            self.weight().elem_count(),
            python_float(self.eps()),
            python_bool(self.bias().is_some())
        )
    }
}

impl BaseLayer for RmsNorm {
    const KIND: LayerKind = LayerKind::new("RmsNorm", Family::Other);

    fn geometry(&self) -> Geometry {
        Geometry::Opaque
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("weight", self.weight())]
    }

    fn map_parameters(&self, map: &mut ParameterMap<'_>) -> Result<Self> {
        Ok(Self::new(map("weight", self.weight())?, self.eps()))
    }

    fn forward_base(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        rms_norm(x, self.weight(), self.eps())
    }

    fn describe(&self) -> String {
        format!("RmsNorm(({},), eps={})", self.weight().elem_count(), python_float(self.eps()))
    }
}
