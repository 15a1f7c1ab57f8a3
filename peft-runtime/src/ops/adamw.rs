//! One step of AdamW on one variable: on the CPU in a single pass, in the variable's own memory.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, Tensor, Var, bail};
use half::{bf16, f16};

use crate::ops::cpu::real::Real;
use crate::ops::cpu::threads::for_each;

/// The coefficients of one step, which are the same for all elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coefficients<S> {
    /// What the values are multiplied by before the step.
    pub(crate) decay_before: S,
    /// What the values are multiplied by after it.
    pub(crate) decay_after: S,
    /// 1 − β₁.
    pub(crate) towards_gradient: S,
    /// β₂.
    pub(crate) beta2: S,
    /// 1 − β₂.
    pub(crate) towards_square: S,
    /// The learning rate with the correction of the first moment.
    pub(crate) step_size: S,
    /// What the square root of the second moment is divided by.
    pub(crate) correction: S,
    /// What is then added to the quotient.
    pub(crate) eps: S,
}

/// The running means of one variable's gradient and of its square.
pub(crate) struct Moments<'a, S> {
    pub(crate) first: &'a mut [S],
    pub(crate) second: &'a mut [S],
}

/// The length from which a variable is worth splitting among threads.
const PARALLEL_FROM: usize = 1 << 16;

/// How many elements one thread takes at a time.
const CHUNK: usize = 1 << 14;

impl Coefficients<f64> {
    fn cast<S: Real>(self) -> Coefficients<S> {
        Coefficients {
            decay_before: S::of(self.decay_before),
            decay_after: S::of(self.decay_after),
            towards_gradient: S::of(self.towards_gradient),
            beta2: S::of(self.beta2),
            towards_square: S::of(self.towards_square),
            step_size: S::of(self.step_size),
            correction: S::of(self.correction),
            eps: S::of(self.eps),
        }
    }
}

impl<S: Real> Coefficients<S> {
    /// The operations are those of PyTorch, in its order.
    fn update<T: Copy>(
        &self,
        values: &mut [T],
        grads: &[T],
        moments: (&mut [S], &mut [S]),
        widen: impl Fn(T) -> S,
        round: impl Fn(S) -> T,
    ) {
        let c = *self;
        let moments = moments.0.iter_mut().zip(moments.1);
        for ((value, grad), (first, second)) in values.iter_mut().zip(grads).zip(moments) {
            let grad = widen(*grad);
            let m = *first + c.towards_gradient * (grad - *first);
            let v = *second * c.beta2 + c.towards_square * grad * grad;
            let step = c.step_size * m / (v.sqrt() / c.correction + c.eps);
            *value = round((widen(*value) * c.decay_before - step) * c.decay_after);
            (*first, *second) = (m, v);
        }
    }
}

/// The step as an op that candle runs on the variable's memory.
pub(crate) struct Step<'a, S> {
    moments: RefCell<Moments<'a, S>>,
    coefficients: Coefficients<S>,
}

impl<S: Real> Step<'_, S> {
    fn run<T: Copy + Send + Sync>(
        &self,
        values: &mut [T],
        grads: &[T],
        widen: impl Fn(T) -> S + Sync,
        round: impl Fn(S) -> T + Sync,
    ) -> Result<()> {
        let Ok(mut moments) = self.moments.try_borrow_mut() else { bail!("a step is taken once") };
        let moments = &mut *moments;
        let (first, second) = (&mut *moments.first, &mut *moments.second);
        let count = values.len();
        if [grads.len(), first.len(), second.len()] != [count; 3] {
            bail!("a gradient of {} elements does not fit a variable of {count}", grads.len())
        }
        let coefficients = self.coefficients;
        if count < PARALLEL_FROM {
            coefficients.update(values, grads, (first, second), widen, round);
            return Ok(());
        }
        let moments = first.chunks_mut(CHUNK).zip(second.chunks_mut(CHUNK));
        let chunks = values.chunks_mut(CHUNK).zip(grads.chunks(CHUNK)).zip(moments);
        for_each(chunks, |((values, grads), moments)| {
            coefficients.update(values, grads, moments, &widen, &round);
        });
        Ok(())
    }
}

fn range(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("a step needs a variable and a gradient that are contiguous"),
    }
}

/// What moments are kept in: f32, and f64 for variables of f64.
pub(crate) trait Moment: Real {
    /// Takes the step on a part of the storage; `None` if variables of that dtype have other moments.
    fn run(
        step: &Step<'_, Self>,
        values: (&mut CpuStorage, Range<usize>),
        grads: (&CpuStorage, Range<usize>),
    ) -> Option<Result<()>>;
}

impl Moment for f32 {
    fn run(
        step: &Step<'_, Self>,
        (values, to): (&mut CpuStorage, Range<usize>),
        (grads, from): (&CpuStorage, Range<usize>),
    ) -> Option<Result<()>> {
        Some(match (values, grads) {
            (CpuStorage::F32(values), CpuStorage::F32(grads)) => {
                step.run(&mut values[to], &grads[from], |value| value, |value| value)
            }
            (CpuStorage::F16(values), CpuStorage::F16(grads)) => {
                step.run(&mut values[to], &grads[from], f16::to_f32, f16::from_f32)
            }
            (CpuStorage::BF16(values), CpuStorage::BF16(grads)) => {
                step.run(&mut values[to], &grads[from], bf16::to_f32, bf16::from_f32)
            }
            _ => return None,
        })
    }
}

impl Moment for f64 {
    fn run(
        step: &Step<'_, Self>,
        (values, to): (&mut CpuStorage, Range<usize>),
        (grads, from): (&CpuStorage, Range<usize>),
    ) -> Option<Result<()>> {
        match (values, grads) {
            (CpuStorage::F64(values), CpuStorage::F64(grads)) => {
                Some(step.run(&mut values[to], &grads[from], |value| value, |value| value))
            }
            _ => None,
        }
    }
}

impl<S: Moment> InplaceOp2 for Step<'_, S> {
    fn name(&self) -> &'static str {
        "adamw-step"
    }

    fn cpu_fwd(
        &self,
        values: &mut CpuStorage,
        layout: &Layout,
        grads: &CpuStorage,
        grads_layout: &Layout,
    ) -> Result<()> {
        let (to, from) = (range(layout)?, range(grads_layout)?);
        let (dtype, grads_dtype) = (values.dtype(), grads.dtype());
        match S::run(self, (values, to), (grads, from)) {
            Some(done) => done,
            None => bail!("cannot change {dtype:?} by a gradient of {grads_dtype:?}"),
        }
    }
}

/// Takes one step of a variable in main memory; `grad` has its shape and dtype and is contiguous.
pub(crate) fn step_in_place<S: Moment>(
    var: &Var,
    grad: &Tensor,
    moments: Moments<'_, S>,
    coefficients: Coefficients<f64>,
) -> Result<()> {
    let step = Step { moments: RefCell::new(moments), coefficients: coefficients.cast() };
    var.inplace_op2(grad, &step)
}

/// Takes one step with candle's own ops, on any device. Returns the new moments, in the dtype of the old ones.
pub(crate) fn step_on_device(
    var: &Var,
    grad: &Tensor,
    (first, second): (&Tensor, &Tensor),
    c: Coefficients<f64>,
) -> Result<(Tensor, Tensor)> {
    let grad = grad.to_dtype(first.dtype())?;
    let m = (first + ((&grad - first)? * c.towards_gradient)?)?;
    let v = ((second * c.beta2)? + ((&grad * &grad)? * c.towards_square)?)?;
    let divisor = ((v.sqrt()? / c.correction)? + c.eps)?;
    let step = ((&m * c.step_size)? / divisor)?;
    let value = (var.as_detached_tensor().to_dtype(first.dtype())? * c.decay_before)?;
    let value = ((value - step)? * c.decay_after)?;
    var.set(&value.to_dtype(var.dtype())?)?;
    Ok((m, v))
}

/// The dtype of the moments of a variable.
pub(crate) fn moments_dtype(var: DType) -> DType {
    if var == DType::F64 { DType::F64 } else { DType::F32 }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor, Var};

    use super::{CHUNK, Coefficients, Moments, PARALLEL_FROM, moments_dtype, step_in_place, step_on_device};
    use crate::ops::testing::{assert_close, random_as};

    const COEFFICIENTS: Coefficients<f64> = Coefficients {
        decay_before: 0.999,
        decay_after: 0.995,
        towards_gradient: 0.1,
        beta2: 0.999,
        towards_square: 0.001,
        step_size: 0.02,
        correction: 0.7,
        eps: 1e-8,
    };

    /// Two steps from the same start, in place and composed.
    fn both(dtype: DType, length: usize) -> [Tensor; 3] {
        let [start, grad] = ["start", "grad"].map(|label| random_as(dtype, label, &[length]));
        let [ours, theirs] = [(); 2].map(|()| Var::from_tensor(&start).unwrap());
        let zeros = Tensor::zeros(length, moments_dtype(dtype), &Device::Cpu).unwrap();
        let [mut first, mut second] = [(); 2].map(|()| vec![0f32; length]);
        let [mut wide_first, mut wide_second] = [(); 2].map(|()| vec![0f64; length]);
        let mut moments = (zeros.clone(), zeros);
        for _ in 0..2 {
            if dtype == DType::F64 {
                let moments = Moments { first: &mut wide_first, second: &mut wide_second };
                step_in_place(&ours, &grad, moments, COEFFICIENTS).unwrap();
            } else {
                let moments = Moments { first: &mut first, second: &mut second };
                step_in_place(&ours, &grad, moments, COEFFICIENTS).unwrap();
            }
            moments = step_on_device(&theirs, &grad, (&moments.0, &moments.1), COEFFICIENTS).unwrap();
        }
        [ours.as_detached_tensor(), theirs.as_detached_tensor(), start]
    }

    #[test]
    fn the_pass_in_place_is_the_composed_step() {
        let tolerances =
            [(DType::F32, 5e-7), (DType::F64, 1e-15), (DType::BF16, 1.2e-2), (DType::F16, 1.4e-3)];
        for (dtype, tolerance) in tolerances {
            for length in [1, 7, PARALLEL_FROM + CHUNK / 2 + 3] {
                let [ours, theirs, start] = both(dtype, length);
                assert_close(&ours, &theirs, tolerance, &format!("{dtype:?} {length}"));
                let unmoved = ours.eq(&start).unwrap().to_dtype(DType::F32).unwrap().mean_all().unwrap();
                assert!(unmoved.to_scalar::<f32>().unwrap() < 0.5, "{dtype:?} {length}");
            }
        }
    }

    #[test]
    fn a_gradient_of_another_size_is_refused() {
        let var = Var::zeros(3, DType::F32, &Device::Cpu).unwrap();
        let grad = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
        let (mut first, mut second) = ([0f32; 3], [0f32; 3]);
        let moments = Moments { first: &mut first, second: &mut second };
        assert!(step_in_place(&var, &grad, moments, COEFFICIENTS).is_err());
    }
}
