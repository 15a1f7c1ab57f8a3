//! The sum of two gradients.

use candle_core::{DType, Device, Result, Tensor, bail};
use half::{bf16, f16};

use crate::ops::cpu::element::Element;
use crate::ops::cpu::threads::for_each;
use crate::ops::elements::Elements;

/// How many elements are widened at a time.
const BLOCK: usize = 1 << 10;
/// How many elements a thread takes at a time.
const TASK: usize = 16 * BLOCK;

/// `a + b` for tensors of one shape and dtype, outside of any graph; halves on the CPU are added in f32 and rounded.
pub(super) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() || a.dtype() != b.dtype() {
        bail!(
            "gradients of shapes {:?} in {:?} and {:?} in {:?} are for one tensor",
            a.dims(),
            a.dtype(),
            b.dims(),
            b.dtype()
        )
    }
    let (a, b) = (a.detach(), b.detach());
    match (a.device(), a.dtype()) {
        (Device::Cpu, DType::BF16) => halves::<bf16>(&a.contiguous()?, &b.contiguous()?),
        (Device::Cpu, DType::F16) => halves::<f16>(&a.contiguous()?, &b.contiguous()?),
        _ => a + b,
    }
}

fn halves<T: Element>(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (left, right) = (Elements::of(a), Elements::of(b));
    let (left, right) = (left.as_slice::<T>()?, right.as_slice::<T>()?);
    let mut sums = vec![T::from_f64(0.0); left.len()];
    let tasks = sums.chunks_mut(TASK).zip(left.chunks(TASK)).zip(right.chunks(TASK));
    for_each(tasks, |((sums, left), right)| {
        let (mut wide, mut other) = ([0f32; BLOCK], [0f32; BLOCK]);
        for ((sums, left), right) in sums.chunks_mut(BLOCK).zip(left.chunks(BLOCK)).zip(right.chunks(BLOCK)) {
            let (wide, other) = (&mut wide[..sums.len()], &mut other[..sums.len()]);
            T::widen(left, wide);
            T::widen(right, other);
            wide.iter_mut().zip(other).for_each(|(wide, other)| *wide += *other);
            T::round(wide, sums);
        }
    });
    Tensor::from_vec(sums, a.shape(), &Device::Cpu)
}
