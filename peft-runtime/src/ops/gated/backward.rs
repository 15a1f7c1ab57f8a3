//! The backward passes.

use candle_core::{DType, Device, Result, Tensor};
use half::{bf16, f16};

use super::kernel::{Activation, activate_gradient, gate_gradients};
use super::{Activate, Gated, TASK};
use crate::ops::cpu::float::Float;
use crate::ops::cpu::threads::for_each;
use crate::ops::elements::Elements;

impl<A: Activation> Activate<A> {
    pub(super) fn gradient<T: Float>(x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (x_elements, grad_elements) = (Elements::of(x), Elements::of(grad));
        let (values, dy) = (x_elements.as_slice::<T>()?, grad_elements.as_slice::<T>()?);
        let mut dx = vec![T::from_f64(0.0); values.len()];
        let blocks = dx.chunks_mut(TASK).zip(values.chunks(TASK).zip(dy.chunks(TASK)));
        for_each(blocks, |(dx, (x, dy))| {
            let [mut wide_x, mut wide_dy, mut wide_dx] = [const { Vec::new() }; 3];
            let (x, dy) = (T::read(x, &mut wide_x), T::read(dy, &mut wide_dy));
            T::write(dx, &mut wide_dx, |dx| activate_gradient::<A, T::Wide>(dx, x, dy));
        });
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
            DType::F16 => Self::gradients_as::<f16>(gate, up, &grad),
            DType::BF16 => Self::gradients_as::<bf16>(gate, up, &grad),
            _ => Self::gradients_as::<f32>(gate, up, &grad),
        }
    }

    fn gradients_as<T: Float>(
        gates: &Tensor,
        up: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let elements = [gates, up, grad].map(Elements::of);
        let [gate_values, up_values, dy] =
            [elements[0].as_slice::<T>()?, elements[1].as_slice::<T>()?, elements[2].as_slice::<T>()?];
        let mut dgate = vec![T::from_f64(0.0); dy.len()];
        let mut dup = vec![T::from_f64(0.0); dy.len()];
        let outputs = dgate.chunks_mut(TASK).zip(dup.chunks_mut(TASK));
        let inputs = gate_values.chunks(TASK).zip(up_values.chunks(TASK)).zip(dy.chunks(TASK));
        for_each(outputs.zip(inputs), |((dgate, dup), ((gate, up), dy))| {
            let [mut wide_gate, mut wide_up, mut wide_dy] = [const { Vec::new() }; 3];
            let (gate, up) = (T::read(gate, &mut wide_gate), T::read(up, &mut wide_up));
            let dy = T::read(dy, &mut wide_dy);
            let [mut wide_dgate, mut wide_dup] = [const { Vec::new() }; 2];
            T::write(dgate, &mut wide_dgate, |dgate| {
                T::write(dup, &mut wide_dup, |dup| gate_gradients::<A, T::Wide>(dgate, dup, gate, up, dy));
            });
        });
        let tensor = |of: &Tensor, values: Vec<T>| {
            of.track_op().then(|| Tensor::from_vec(values, of.dims(), &Device::Cpu)).transpose()
        };
        Ok((tensor(gates, dgate)?, tensor(up, dup)?))
    }
}
