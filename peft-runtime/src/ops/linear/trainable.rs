//! The linear map whose weight trains, with the kernels of the frozen one: a copy of a layer computes what the layer does, to the
//! bit, and candle's own product has no bf16 on the CPU.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor};

use crate::ops::graph::carried::ApplyCarried;
use crate::ops::linear::frozen::FrozenLinear;
use crate::ops::matmul::product_as;

/// y = x·Wᵀ + b on the CPU in f32 or half precision, rounded once, with gradients for all that is part of a graph.
pub(super) fn trainable_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let map = FrozenLinear { weight: weight.detach(), bias: bias.map(Tensor::detach) };
    let (x, op) = (x.contiguous()?, TrainableLinear(map));
    match bias {
        Some(bias) if bias.track_op() => x.carry_op3(weight, bias, op),
        _ => x.carry_op2(weight, op),
    }
}

struct TrainableLinear(FrozenLinear);

impl TrainableLinear {
    /// dx = dy·W, dW = dyᵀ·x.
    fn gradients(
        &self,
        x: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (out_features, in_features) = weight.dims2()?;
        let dx = x.track_op().then(|| self.0.input_gradient(grad, x.dims())).transpose()?;
        let dy = grad.contiguous()?.reshape(((), out_features))?;
        let rows = x.detach().reshape(((), in_features))?;
        let dw = weight.track_op().then(|| product_as(weight.dtype(), &dy.t()?, &rows, 1.0));
        Ok((dx, dw.transpose()?))
    }
}

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

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients(x, weight, grad)
    }
}

impl CustomOp3 for TrainableLinear {
    fn name(&self) -> &'static str {
        "linear-with-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        CustomOp1::cpu_fwd(&self.0, x, layout)
    }

    /// db is the sum of dy over all rows.
    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.gradients(x, weight, grad)?;
        let dy = grad.contiguous()?.reshape(((), bias.elem_count()))?;
        let ones = Tensor::ones((1, dy.dim(0)?), DType::F32, dy.device())?;
        let db = product_as(bias.dtype(), &ones, &dy, 1.0)?.reshape(bias.dims())?;
        Ok((dx, dw, Some(db)))
    }
}
