//! Gated activations, and GELU by itself, each one op in both directions.

mod backward;
mod kernel;

use std::marker::PhantomData;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use half::{bf16, f16};

use self::kernel::{Activation, GeluErf, GeluTanh, Silu, activate, gate};
use crate::ops::cpu::float::Float;
use crate::ops::cpu::threads::for_each;
use crate::ops::elements::contiguous_slice;
use crate::ops::graph::carried::ApplyCarried;

/// One task computes at least this many elements.
const TASK: usize = 4096;

/// `silu(gate) ∘ up`, with `silu(x) = x · σ(x)`; both of one shape and dtype. <https://arxiv.org/abs/2002.05202>
///
/// In half precision on the CPU it is computed in f32 and rounded once.
///
/// # Errors
/// If the shapes differ, or the tensors do not hold floats of one dtype.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated::<Silu>(gate, up, Tensor::silu)
}

/// The gradients of gate and up of [`swiglu`] on the CPU, where they are part of a graph.
pub(super) fn swiglu_gradients(
    gate: &Tensor,
    up: &Tensor,
    grad: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    Gated::<Silu>::gradients(&gate.contiguous()?, &up.contiguous()?, grad)
}

/// `gelu(gate) ∘ up`; both of one shape and dtype. <https://arxiv.org/abs/2002.05202>
///
/// `approximate` uses GELU's approximation by a tanh, as transformers' `gelu_pytorch_tanh` and `gelu_new` do; without
/// it GELU is `x · Φ(x)`.
///
/// # Errors
/// If the shapes differ, or the tensors do not hold floats of one dtype.
pub fn geglu(gate: &Tensor, up: &Tensor, approximate: bool) -> Result<Tensor> {
    if approximate {
        gated::<GeluTanh>(gate, up, Tensor::gelu)
    } else {
        gated::<GeluErf>(gate, up, Tensor::gelu_erf)
    }
}

/// GELU's approximation by a tanh, the activation of GPT-2, for `x` of any shape. <https://arxiv.org/abs/1606.08415>
///
/// # Errors
/// If `x` does not hold floats.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    activated::<GeluTanh>(x, Tensor::gelu)
}

/// GELU itself, `x · Φ(x)`, the activation of BERT, for `x` of any shape. <https://arxiv.org/abs/1606.08415>
///
/// # Errors
/// If `x` does not hold floats.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    activated::<GeluErf>(x, Tensor::gelu_erf)
}

/// The op on the CPU; elsewhere `activation`, which is candle's own.
fn activated<A: Activation>(x: &Tensor, activation: fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    if x.device().is_cpu() { x.contiguous()?.carry_op1(Activate::<A>(PhantomData)) } else { activation(x) }
}

/// The op on the CPU; elsewhere `activation`, which is candle's own, times `up`.
fn gated<A: Activation>(
    gate: &Tensor,
    up: &Tensor,
    activation: fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if gate.dims() != up.dims() || gate.dtype() != up.dtype() {
        bail!(
            "a gate of shape {:?} in {:?} does not fit an input of shape {:?} in {:?}",
            gate.dims(),
            gate.dtype(),
            up.dims(),
            up.dtype()
        )
    }
    if gate.device().is_cpu() {
        return gate.contiguous()?.carry_op2(&up.contiguous()?, Gated::<A>(PhantomData));
    }
    activation(gate)? * up
}

struct Activate<A>(PhantomData<A>);

impl<A: Activation> Activate<A> {
    fn forward<T: Float>(x: &[T]) -> Vec<T> {
        let mut y = vec![T::from_f64(0.0); x.len()];
        let blocks = y.chunks_mut(TASK).zip(x.chunks(TASK));
        for_each(blocks, |(y, x)| {
            let (mut wide_x, mut wide_y) = (Vec::new(), Vec::new());
            let x = T::read(x, &mut wide_x);
            T::write(y, &mut wide_y, |y| activate::<A, T::Wide>(y, x));
        });
        y
    }
}

impl<A: Activation> CustomOp1 for Activate<A> {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = match storage {
            CpuStorage::F32(x) => CpuStorage::F32(Self::forward(contiguous_slice(x, layout)?)),
            CpuStorage::F64(x) => CpuStorage::F64(Self::forward(contiguous_slice(x, layout)?)),
            CpuStorage::F16(x) => CpuStorage::F16(Self::forward(contiguous_slice(x, layout)?)),
            CpuStorage::BF16(x) => CpuStorage::BF16(Self::forward(contiguous_slice(x, layout)?)),
            storage => bail!("an activation takes floats, not {:?}", storage.dtype()),
        };
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        Ok(Some(match x.dtype() {
            DType::F64 => Self::gradient::<f64>(x, &grad)?,
            DType::F16 => Self::gradient::<f16>(x, &grad)?,
            DType::BF16 => Self::gradient::<bf16>(x, &grad)?,
            _ => Self::gradient::<f32>(x, &grad)?,
        }))
    }
}

struct Gated<A>(PhantomData<A>);

impl<A: Activation> Gated<A> {
    fn forward<T: Float>(gates: &[T], up: &[T]) -> Vec<T> {
        let mut y = vec![T::from_f64(0.0); gates.len()];
        let blocks = y.chunks_mut(TASK).zip(gates.chunks(TASK).zip(up.chunks(TASK)));
        for_each(blocks, |(y, (gates, up))| {
            let [mut wide_gates, mut wide_up, mut wide_y] = [const { Vec::new() }; 3];
            let (gates, up) = (T::read(gates, &mut wide_gates), T::read(up, &mut wide_up));
            T::write(y, &mut wide_y, |y| gate::<A, T::Wide>(y, gates, up));
        });
        y
    }
}

impl<A: Activation> CustomOp2 for Gated<A> {
    fn name(&self) -> &'static str {
        "gated-activation"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = match (gate, up) {
            (CpuStorage::F32(gate), CpuStorage::F32(up)) => {
                let up = contiguous_slice(up, up_layout)?;
                CpuStorage::F32(Self::forward(contiguous_slice(gate, gate_layout)?, up))
            }
            (CpuStorage::F64(gate), CpuStorage::F64(up)) => {
                let up = contiguous_slice(up, up_layout)?;
                CpuStorage::F64(Self::forward(contiguous_slice(gate, gate_layout)?, up))
            }
            (CpuStorage::F16(gate), CpuStorage::F16(up)) => {
                let up = contiguous_slice(up, up_layout)?;
                CpuStorage::F16(Self::forward(contiguous_slice(gate, gate_layout)?, up))
            }
            (CpuStorage::BF16(gate), CpuStorage::BF16(up)) => {
                let up = contiguous_slice(up, up_layout)?;
                CpuStorage::BF16(Self::forward(contiguous_slice(gate, gate_layout)?, up))
            }
            (gate, _) => bail!("a gated activation takes floats, not {:?}", gate.dtype()),
        };
        Ok((y, gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Self::gradients(gate, up, grad)
    }
}

#[cfg(test)]
mod tests;
