//! Gated activations, and GELU alone, each one op in both directions.

use std::marker::PhantomData;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::cpu::gated::{
    Activation, GeluErf, GeluTanh, Silu, activate, activate_gradient, gate, gate_gradients,
};
use super::cpu::real::Real;
use super::elements::Elements;
use super::is_half_on_cpu;
use super::linear::contiguous_slice;

/// Elements that one task computes at least.
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

/// The gradients of gate and up of [`swiglu`] on the CPU in f32 or f64, of those that are part of a graph.
pub(super) fn swiglu_gradients(
    gate: &Tensor,
    up: &Tensor,
    grad: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    Gated::<Silu>::gradients(&gate.contiguous()?, &up.contiguous()?, grad)
}

/// `gelu(gate) ∘ up`; both of one shape and dtype. <https://arxiv.org/abs/2002.05202>
///
/// `approximate` takes GELU's approximation by a tanh, as transformers' `gelu_pytorch_tanh` and `gelu_new` do; without it
/// GELU is `x · Φ(x)`.
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
    if is_half_on_cpu(x) {
        return activated::<A>(&x.to_dtype(DType::F32)?, activation)?.to_dtype(x.dtype());
    }
    if x.device().is_cpu() { x.contiguous()?.apply_op1(Activate::<A>(PhantomData)) } else { activation(x) }
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
    if is_half_on_cpu(gate) {
        let (wide_gate, wide_up) = (gate.to_dtype(DType::F32)?, up.to_dtype(DType::F32)?);
        return gated::<A>(&wide_gate, &wide_up, activation)?.to_dtype(gate.dtype());
    }
    if gate.device().is_cpu() {
        return gate.contiguous()?.apply_op2(&up.contiguous()?, Gated::<A>(PhantomData));
    }
    activation(gate)? * up
}

struct Activate<A>(PhantomData<A>);

impl<A: Activation> Activate<A> {
    fn forward<T: Real>(x: &[T]) -> Vec<T> {
        let mut y = vec![T::ZERO; x.len()];
        let blocks = y.par_chunks_mut(TASK).zip(x.par_chunks(TASK));
        blocks.for_each(|(y, x)| activate::<A, T>(y, x));
        y
    }

    fn gradient<T: Real>(x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (x_elements, grad_elements) = (Elements::of(x), Elements::of(grad));
        let (values, dy) = (x_elements.as_slice::<T>()?, grad_elements.as_slice::<T>()?);
        let mut dx = vec![T::ZERO; values.len()];
        let blocks = dx.par_chunks_mut(TASK).zip(values.par_chunks(TASK).zip(dy.par_chunks(TASK)));
        blocks.for_each(|(dx, (x, dy))| activate_gradient::<A, T>(dx, x, dy));
        Tensor::from_vec(dx, x.dims(), &Device::Cpu)
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
            storage => bail!("an activation takes floats, not {:?}", storage.dtype()),
        };
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        Ok(Some(match x.dtype() {
            DType::F64 => Self::gradient::<f64>(x, &grad)?,
            _ => Self::gradient::<f32>(x, &grad)?,
        }))
    }
}

struct Gated<A>(PhantomData<A>);

impl<A: Activation> Gated<A> {
    fn forward<T: Real>(gates: &[T], up: &[T]) -> Vec<T> {
        let mut y = vec![T::ZERO; gates.len()];
        let blocks = y.par_chunks_mut(TASK).zip(gates.par_chunks(TASK).zip(up.par_chunks(TASK)));
        blocks.for_each(|(y, (gates, up))| gate::<A, T>(y, gates, up));
        y
    }

    /// The gradients of gate and up, of those that are part of a graph.
    fn gradients(gate: &Tensor, up: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        match gate.dtype() {
            DType::F64 => Self::gradients_as::<f64>(gate, up, &grad),
            _ => Self::gradients_as::<f32>(gate, up, &grad),
        }
    }

    fn gradients_as<T: Real>(
        gates: &Tensor,
        up: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let elements = [gates, up, grad].map(Elements::of);
        let [gate_values, up_values, dy] =
            [elements[0].as_slice::<T>()?, elements[1].as_slice::<T>()?, elements[2].as_slice::<T>()?];
        let mut dgate = vec![T::ZERO; dy.len()];
        let mut dup = vec![T::ZERO; dy.len()];
        let outputs = dgate.par_chunks_mut(TASK).zip(dup.par_chunks_mut(TASK));
        let inputs = gate_values.par_chunks(TASK).zip(up_values.par_chunks(TASK)).zip(dy.par_chunks(TASK));
        outputs.zip(inputs).for_each(|((dgate, dup), ((gate, up), dy))| {
            gate_gradients::<A, T>(dgate, dup, gate, up, dy);
        });
        let tensor = |of: &Tensor, values: Vec<T>| {
            of.track_op().then(|| Tensor::from_vec(values, of.dims(), &Device::Cpu)).transpose()
        };
        Ok((tensor(gates, dgate)?, tensor(up, dup)?))
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
mod tests {
    use candle_core::{DType, Result, Tensor, Var};

    use super::{geglu, gelu, swiglu};
    use crate::ops::gradcheck::{Op, assert_agree, assert_differences, assert_precise, values};

    fn inputs() -> Vec<Tensor> {
        // More than one task computes, and a tail.
        vec![(values("gate", &[3, 1500]) * 3.0).unwrap(), values("up", &[3, 1500])]
    }

    fn silu_gate(t: &[Tensor]) -> Result<Tensor> {
        swiglu(&t[0], &t[1])
    }

    fn tanh_gate(t: &[Tensor]) -> Result<Tensor> {
        geglu(&t[0], &t[1], true)
    }

    fn erf_gate(t: &[Tensor]) -> Result<Tensor> {
        geglu(&t[0], &t[1], false)
    }

    fn alone(t: &[Tensor]) -> Result<Tensor> {
        gelu(&t[0])
    }

    #[test]
    fn value_and_gradients_are_those_of_the_composed_ops_and_of_difference_quotients() {
        let all = inputs();
        assert_agree(&silu_gate, &|t| t[0].silu()? * &t[1], &all, 1e-10, "swiglu");
        // candle's own gradients of GELU have constants of six digits.
        assert_agree(&tanh_gate, &|t| t[0].gelu()? * &t[1], &all, 1e-4, "tanh geglu");
        assert_agree(&erf_gate, &|t| t[0].gelu_erf()? * &t[1], &all, 1e-4, "geglu");
        assert_agree(&alone, &|t| t[0].gelu(), &all[..1], 1e-4, "gelu");
        let cases: [(Op<'_>, &[Tensor]); 4] =
            [(&silu_gate, &all[..]), (&tanh_gate, &all[..]), (&erf_gate, &all[..]), (&alone, &all[..1])];
        for (op, inputs) in cases {
            assert_differences(op, inputs, 1e-6, "gate");
            for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 2e-3), (DType::BF16, 2e-2)] {
                assert_precise(op, inputs, dtype, tolerance, "gate");
            }
        }
    }

    #[test]
    fn far_ends_are_finite() {
        let x = Tensor::new(&[-1e4f32, -100.0, 0.0, 100.0, 1e4], &candle_core::Device::Cpu).unwrap();
        let x = Var::from_tensor(&x).unwrap();
        let ones = x.ones_like().unwrap();
        for y in [swiglu(&x, &ones), geglu(&x, &ones, true), geglu(&x, &ones, false), gelu(&x)] {
            let y = y.unwrap();
            assert_eq!(y.to_vec1::<f32>().unwrap(), [0.0, 0.0, 0.0, 100.0, 1e4]);
            let grads = y.sum_all().unwrap().backward().unwrap();
            let slopes = grads.get(&x).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(slopes, [0.0, 0.0, 0.5, 1.0, 1.0]);
        }
    }

    #[test]
    fn strided_inputs_give_the_same_and_a_constant_gets_no_gradient() {
        let (gate, up) = (values("gate", &[4, 6]), values("up", &[6, 4]));
        let strided = |t: &[Tensor]| swiglu(&t[0].t()?, &t[1]);
        let copied = |t: &[Tensor]| swiglu(&t[0].t()?.force_contiguous()?, &t[1]);
        assert_agree(&strided, &copied, &[gate.clone(), up.clone()], 1e-12, "strided");
        assert!(swiglu(&gate, &up).is_err());

        let variable = Var::from_tensor(&gate.t().unwrap()).unwrap();
        let grads = swiglu(&variable, &up).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&variable).is_some() && grads.get(&up).is_none());
    }
}
