//! A residual connection around a frozen linear map, with or without a low-rank product, computed in one buffer:
//! y = r + x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ.
//!
//! candle keeps the arguments of an op as long as the graph. A sum of its own would keep the output of the map beside it,
//! which no backward pass reads. An input that is a product of two tensors is no argument either: the backward pass forms it
//! once more.
//!
//! Four or five tensors get gradients here, and an op of candle has three arguments. So there are two: h = x·Aᵀ, which is
//! small and needed again, of x, or its factors, and A; and y of r, h and B. The first one's backward pass needs the gradient
//! of y, because dx = dy·W + dh·A, and gets it by a [`Relay`].

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor};

use super::computed::Computed;
use super::cpu::matmul::{Matrix, Write};
use super::cpu::real::Real;
use super::elements::Elements;
use super::frozen::FrozenBase;
use super::input::LayerInput;
use super::linear::{FrozenLinear, check_input, output_dims};
use super::low_rank::{LowRank, multiply_low_rank};
use super::matmul::{add_product, product};
use super::quantized_linear::FrozenQuantized;
use super::relay::Relay;

/// `residual + x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ`, without the product if there are no `terms`; `None` where it cannot be one pass:
/// unless the layer is frozen, all tensors are of f32 or all of f64 in main memory, and the residual has the output's shape.
pub(crate) fn linear_add(
    x: LayerInput<'_>,
    weight: &Tensor,
    bias: Option<&Tensor>,
    terms: Option<&LowRank>,
    residual: &Tensor,
) -> Result<Option<Tensor>> {
    let (_, dims) = check_input(x.parts().0, weight)?;
    let parameters = [Some(weight), bias];
    let frozen = !parameters.into_iter().flatten().any(Tensor::track_op);
    if !frozen || residual.dims() != dims || !alike(residual, x, terms, &parameters) {
        return Ok(None);
    }
    let base = FrozenLinear { weight: weight.detach(), bias: bias.map(Tensor::detach) };
    added(x, FrozenBase::Dense(base), terms, residual).map(Some)
}

/// The same for a quantized weight, which is as wide as the input.
pub(crate) fn quantized_linear_add(
    x: LayerInput<'_>,
    weight: &Arc<QTensor>,
    bias: Option<&Tensor>,
    terms: Option<&LowRank>,
    residual: &Tensor,
) -> Result<Option<Tensor>> {
    let (_, dims) = output_dims(x.parts().0, weight.shape().dims2()?)?;
    let frozen = !bias.is_some_and(Tensor::track_op) && weight.device().is_cpu();
    if !frozen || residual.dims() != dims || !alike(residual, x, terms, &[]) {
        return Ok(None);
    }
    added(x, FrozenBase::Quantized(FrozenQuantized::new(weight, bias)), terms, residual).map(Some)
}

/// Whether all tensors hold f32, or all f64, in main memory, and the parts of the input have one shape.
fn alike(
    residual: &Tensor,
    x: LayerInput<'_>,
    terms: Option<&LowRank>,
    parameters: &[Option<&Tensor>],
) -> bool {
    let (dtype, (first, second)) = (residual.dtype(), x.parts());
    let factors = terms.map(|terms| [&terms.a, &terms.b]).into_iter().flatten();
    let others = parameters.iter().copied().flatten().chain(second);
    let mut tensors = [residual, first].into_iter().chain(factors).chain(others);
    matches!(dtype, DType::F32 | DType::F64)
        && tensors.all(|tensor| tensor.dtype() == dtype && tensor.device().is_cpu())
        && second.is_none_or(|second| second.dims() == first.dims())
}

fn added(x: LayerInput<'_>, base: FrozenBase, terms: Option<&LowRank>, residual: &Tensor) -> Result<Tensor> {
    match residual.dtype() {
        DType::F64 => added_as::<f64>(x, base, terms, residual),
        _ => added_as::<f32>(x, base, terms, residual),
    }
}

/// The values, and then the ops that put them into the graph.
fn added_as<T: Real>(
    x: LayerInput<'_>,
    base: FrozenBase,
    terms: Option<&LowRank>,
    residual: &Tensor,
) -> Result<Tensor> {
    let (y, hidden) = values::<T>(&matrix(&x.constant()?)?, &base, terms, &matrix(residual)?)?;
    let y = Computed::new(y, residual.shape());
    let Some(LowRank { a, b, scaling }) = terms else {
        let sum = FrozenSum { base, y };
        return match x.parts() {
            (x, None) => residual.apply_op2(x, sum),
            (gate, Some(up)) => residual.apply_op3(gate, up, sum),
        };
    };
    let shared = Arc::new(Shared { base, relay: Relay::default() });
    let hidden = Computed::new(hidden, (rows_of(residual), a.dim(0)?));
    let hidden = Hidden { shared: Arc::clone(&shared), hidden };
    let hidden = match x.parts() {
        (x, None) => x.apply_op2(a, hidden)?,
        (gate, Some(up)) => gate.apply_op3(up, a, hidden)?,
    };
    residual.apply_op3(&hidden, b, LowRankSum { shared, scaling: *scaling, y })
}

/// y, and h if there is a low-rank product, for matrices.
fn values<T: Real>(
    x: &Tensor,
    base: &FrozenBase,
    terms: Option<&LowRank>,
    residual: &Tensor,
) -> Result<(Vec<T>, Vec<T>)> {
    let mut y = Elements::of(residual).as_slice::<T>()?.to_vec();
    let elements = Elements::of(x);
    let values = elements.as_slice::<T>()?;
    base.add_rows(&mut y, values, rows_of(x))?;
    let Some(LowRank { a, b, scaling }) = terms else { return Ok((y, Vec::new())) };
    let (a, b) = (Elements::of(a), Elements::of(b));
    let a = Matrix::from_layout(a.data::<T>()?, a.layout())?;
    let b = Matrix::from_layout(b.data::<T>()?, b.layout())?;
    let hidden = multiply_low_rank(&mut y, Write::Add, *scaling, values, a, b)?;
    Ok((y, hidden))
}

/// How many vectors of the last dimension there are.
fn rows_of(tensor: &Tensor) -> usize {
    tensor.dims().split_last().map_or(1, |(_, dims)| dims.iter().product())
}

/// The tensor as a matrix, outside of any graph.
fn matrix(tensor: &Tensor) -> Result<Tensor> {
    let columns = tensor.dims().last().copied().unwrap_or(1);
    tensor.detach().contiguous()?.reshape((rows_of(tensor), columns))
}

/// The gradient of an operand if it is part of a graph.
fn wanted(operand: &Tensor, gradient: impl FnOnce() -> Result<Tensor>) -> Result<Option<Tensor>> {
    operand.track_op().then(gradient).transpose()
}

/// y = r + x·Wᵀ + b: an op of r and x, or of r and the parts of x.
struct FrozenSum {
    base: FrozenBase,
    y: Computed,
}

impl FrozenSum {
    /// The gradient of x, as a matrix.
    fn input_gradient(&self, grad: &Tensor) -> Result<Tensor> {
        self.base.input_gradient(&matrix(grad)?)
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
struct Shared {
    base: FrozenBase,
    /// Takes dy from the second op to the first.
    relay: Relay,
}

/// h = x·Aᵀ, `[rows, rank]`: an op of x and A, or of the parts of x and A.
struct Hidden {
    shared: Arc<Shared>,
    hidden: Computed,
}

impl Hidden {
    /// dA = dhᵀ·x, and through both ops dx = dy·W + dh·A: the gradients of the parts of x and of A.
    fn gradients(&self, x: LayerInput<'_>, a: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let dy = self.shared.relay.take()?;
        let grad_a = wanted(a, || product(&grad.t()?, &matrix(&x.constant()?)?, 1.0))?;
        let (first, second) = x.gradients(|| {
            let through_base = self.shared.base.input_gradient(&dy)?;
            add_product(through_base, grad, &a.detach(), 1.0)
        })?;
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
struct LowRankSum {
    shared: Arc<Shared>,
    scaling: f64,
    y: Computed,
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
        let grad_b = wanted(b, || product(&dy.t()?, &hidden.detach(), self.scaling))?;
        let grad_hidden = wanted(hidden, || product(&dy, &b.detach(), self.scaling))?;
        if hidden.track_op() {
            self.shared.relay.put(dy);
        }
        Ok((wanted(residual, || Ok(grad.clone()))?, grad_hidden, grad_b))
    }
}

#[cfg(test)]
mod tests;
