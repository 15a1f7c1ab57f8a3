//! The linear map of half precision whose weight trains: candle's own product has no bf16 on the CPU.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use crate::ops::linear::frozen::FrozenLinear;
use crate::ops::matmul::product_as;
use crate::ops::{is_at_most_f32, is_half};

/// Whether the map is this op: on the CPU, of half precision at one place at least.
pub(super) fn takes(x: &Tensor, weight: &Tensor) -> bool {
    let dtypes = [x.dtype(), weight.dtype()];
    let mixed = dtypes[0] != dtypes[1] || is_half(dtypes[0]);
    x.device().is_cpu() && mixed && dtypes.into_iter().all(is_at_most_f32)
}

/// y = x·Wᵀ, with gradients for both.
pub(super) fn trainable_linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let map = FrozenLinear { weight: weight.detach(), bias: None };
    x.contiguous()?.apply_op2(weight, TrainableLinear(map))
}

struct TrainableLinear(FrozenLinear);

impl CustomOp2 for TrainableLinear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        CustomOp1::cpu_fwd(&self.0, x, layout)
    }

    /// dx = dy·W, dW = dyᵀ·x.
    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (out_features, in_features) = weight.dims2()?;
        let dx = x.track_op().then(|| self.0.input_gradient(grad, x.dims())).transpose()?;
        let dy = grad.contiguous()?.reshape(((), out_features))?;
        let rows = x.detach().reshape(((), in_features))?;
        Ok((dx, Some(product_as(weight.dtype(), &dy.t()?, &rows, 1.0)?)))
    }
}
