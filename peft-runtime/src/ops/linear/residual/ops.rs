//! The ops that put the values into the graph, and their backward passes.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use crate::ops::graph::handover::GradientHandover;
use crate::ops::graph::precomputed::Precomputed;
use crate::ops::linear::base::FrozenBase;
use crate::ops::linear::input::LayerInput;
use crate::ops::matmul::product_as;

/// How many vectors of the last dimension there are.
pub(super) fn rows_of(tensor: &Tensor) -> usize {
    tensor.dims().split_last().map_or(1, |(_, dims)| dims.iter().product())
}

/// The tensor as a matrix, outside of any graph.
pub(super) fn matrix(tensor: &Tensor) -> Result<Tensor> {
    let columns = tensor.dims().last().copied().unwrap_or(1);
    tensor.detach().contiguous()?.reshape((rows_of(tensor), columns))
}

/// The gradient of an operand if it is part of a graph.
fn wanted(operand: &Tensor, gradient: impl FnOnce() -> Result<Tensor>) -> Result<Option<Tensor>> {
    operand.track_op().then(gradient).transpose()
}

/// y = r + x·Wᵀ + b: an op of r and x, or of r and the parts of x.
pub(super) struct FrozenSum {
    pub(super) base: FrozenBase,
    pub(super) y: Precomputed,
}

impl FrozenSum {
    /// The gradient of x, as a matrix.
    fn input_gradient(&self, grad: &Tensor) -> Result<Tensor> {
        self.base.input_gradient(grad.dtype(), &matrix(grad)?, None)
    }
}

impl CustomOp2 for FrozenSum {
    fn name(&self) -> &'static str {
        "frozen-linear-add"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.y.take()
    }

    fn bwd(
        &self,
        residual: &Tensor,
        x: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, _) = LayerInput::Tensor(x).gradients(|| self.input_gradient(grad))?;
        Ok((wanted(residual, || Ok(grad.clone()))?, dx))
    }
}

impl CustomOp3 for FrozenSum {
    fn name(&self) -> &'static str {
        "frozen-gated-linear-add"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.y.take()
    }

    fn bwd(
        &self,
        residual: &Tensor,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dgate, dup) = LayerInput::Swiglu { gate, up }.gradients(|| self.input_gradient(grad))?;
        Ok((wanted(residual, || Ok(grad.clone()))?, dgate, dup))
    }
}

/// What the two ops of a sum with a low-rank product share.
pub(super) struct SharedByOps {
    pub(super) base: FrozenBase,
    /// Hands dy from the second op to the first.
    pub(super) handover: GradientHandover,
}

/// h = x·Aᵀ, `[rows, rank]`: an op of x and A, or of the parts of x and A.
pub(super) struct Hidden {
    pub(super) shared: Arc<SharedByOps>,
    pub(super) hidden: Precomputed,
}

impl Hidden {
    /// dA = dhᵀ·x, and through both ops dx = dy·W + dh·A: the gradients of the parts of x and of A.
    fn gradients(&self, x: LayerInput<'_>, a: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let dy = self.shared.handover.take()?;
        let grad_a = wanted(a, || product_as(a.dtype(), &grad.t()?, &matrix(&x.constant()?)?, 1.0))?;
        let (first, second) =
            x.gradients(|| self.shared.base.input_gradient(dy.dtype(), &dy, Some((grad, &a.detach()))))?;
        Ok([first, second, grad_a])
    }
}

impl CustomOp2 for Hidden {
    fn name(&self) -> &'static str {
        "low-rank-hidden"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.hidden.take()
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, _, grad_a] = self.gradients(LayerInput::Tensor(x), a, grad)?;
        Ok((dx, grad_a))
    }
}

impl CustomOp3 for Hidden {
    fn name(&self) -> &'static str {
        "gated-low-rank-hidden"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.hidden.take()
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        a: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dgate, dup, grad_a] = self.gradients(LayerInput::Swiglu { gate, up }, a, grad)?;
        Ok((dgate, dup, grad_a))
    }
}

/// y = r + x·Wᵀ + b + s·h·Bᵀ.
pub(super) struct LowRankSum {
    pub(super) shared: Arc<SharedByOps>,
    pub(super) scaling: f64,
    pub(super) y: Precomputed,
}

impl CustomOp3 for LowRankSum {
    fn name(&self) -> &'static str {
        "low-rank-linear-add"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.y.take()
    }

    /// dr = dy, dh = s·dy·B, dB = s·dyᵀ·h.
    fn bwd(
        &self,
        residual: &Tensor,
        hidden: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = matrix(grad)?;
        let grad_b = wanted(b, || product_as(b.dtype(), &dy.t()?, &hidden.detach(), self.scaling))?;
        let grad_hidden = wanted(hidden, || product_as(hidden.dtype(), &dy, &b.detach(), self.scaling))?;
        if hidden.track_op() {
            self.shared.handover.leave(dy);
        }
        Ok((wanted(residual, || Ok(grad.clone()))?, grad_hidden, grad_b))
    }
}
