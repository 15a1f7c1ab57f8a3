//! The backward passes.

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::kernel::{Activation, activate_gradient, gate_gradients};
use super::{Activate, Gated, TASK};
use crate::ops::cpu::real::Real;
use crate::ops::elements::Elements;

impl<A: Activation> Activate<A> {
    pub(super) fn gradient<T: Real>(x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (x_elements, grad_elements) = (Elements::of(x), Elements::of(grad));
        let (values, dy) = (x_elements.as_slice::<T>()?, grad_elements.as_slice::<T>()?);
        let mut dx = vec![T::ZERO; values.len()];
        let blocks = dx.par_chunks_mut(TASK).zip(values.par_chunks(TASK).zip(dy.par_chunks(TASK)));
        blocks.for_each(|(dx, (x, dy))| activate_gradient::<A, T>(dx, x, dy));
        Tensor::from_vec(dx, x.dims(), &Device::Cpu)
    }
}

impl<A: Activation> Gated<A> {
    /// The gradients of gate and up, where they are part of a graph.
    pub(super) fn gradients(
        gate: &Tensor,
        up: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
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
