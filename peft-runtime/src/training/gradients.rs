//! The gradients of several batches: their sum, their norm, and what is wrong with them.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Storage, Tensor, Var, bail};

use crate::error::Result;
use crate::ops::cpu::threads::map;
use crate::ops::widened;

/// The mean of the gradients of several batches: a step of the optimiser on more rows than fit into memory at once.
///
/// Gradients in half precision are summed in f32; only the mean is rounded.
///
/// ```
/// use candle_core::{Device, Var};
/// use peft_runtime::train::GradientAccumulator;
///
/// let x = Var::new(2f32, &Device::Cpu)?;
/// let mut accumulator = GradientAccumulator::new(vec![("x".to_owned(), x.clone())]);
/// for factor in [1.0, 3.0] {
///     accumulator.add(&(x.as_tensor() * factor)?.backward()?)?;
/// }
/// assert_eq!(accumulator.take_mean()?.get(&x).unwrap().to_scalar::<f32>()?, 2.0);
/// # Ok::<(), peft_runtime::Error>(())
/// ```
#[derive(Debug)]
pub struct GradientAccumulator {
    parameters: Vec<(String, Var)>,
    sums: Vec<Option<Tensor>>,
    count: usize,
}

impl GradientAccumulator {
    /// An accumulator for these variables, without gradients yet.
    pub fn new(parameters: Vec<(String, Var)>) -> Self {
        let sums = vec![None; parameters.len()];
        Self { parameters, sums, count: 0 }
    }

    /// The variables, by name.
    pub fn parameters(&self) -> &[(String, Var)] {
        &self.parameters
    }

    /// How many batches have been added.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds the gradients of one batch. A missing gradient counts as zero.
    ///
    /// # Errors
    /// If a gradient has a different shape from the ones before; nothing is added then.
    pub fn add(&mut self, grads: &GradStore) -> Result<()> {
        let sum = |((_, var), sum): (&(String, Var), &Option<Tensor>)| match (grads.get(var), sum) {
            (Some(grad), Some(sum)) => Ok(Some((sum + widened(grad)?)?.detach())),
            (Some(grad), None) => Ok(Some(widened(grad)?.detach())),
            (None, sum) => Ok(sum.clone()),
        };
        let sums = self.parameters.iter().zip(&self.sums).map(sum);
        self.sums = sums.collect::<candle_core::Result<Vec<_>>>()?;
        self.count += 1;
        Ok(())
    }

    /// Returns the mean over the batches and forgets them. A variable that had no gradient in any batch has none in the
    /// mean.
    ///
    /// # Errors
    /// If a device operation fails.
    pub fn take_mean(&mut self) -> Result<GradStore> {
        let mut mean = GradStore::default();
        for ((_, var), sum) in self.parameters.iter().zip(&self.sums) {
            let Some(sum) = sum else { continue };
            let own = if self.count > 1 { (sum / self.count as f64)? } else { sum.clone() };
            mean.insert(var, own.to_dtype(var.dtype())?);
        }
        self.clear();
        Ok(mean)
    }

    /// Forgets all batches.
    pub fn clear(&mut self) {
        self.sums.fill(None);
        self.count = 0;
    }
}

/// The global norm of the gradients: √(Σ g²) over every element of every variable's gradient.
///
/// It is NaN or infinite if and only if an element is.
///
/// # Errors
/// If a device operation fails.
pub fn global_norm(grads: &GradStore, parameters: &[(String, Var)]) -> Result<f64> {
    let mut sum = 0.0;
    for grad in parameters.iter().filter_map(|(_, var)| grads.get(var)) {
        sum += sum_of_squares(grad)?;
    }
    Ok(sum.sqrt())
}

/// Scales all gradients by one factor so that their global norm is at most `max_norm`, and returns the norm that they
/// had: PyTorch's `clip_grad_norm_`.
///
/// Gradients with NaN or infinite elements stay as they are.
///
/// # Errors
/// If a device operation fails.
pub fn clip_by_global_norm(
    grads: &mut GradStore,
    parameters: &[(String, Var)],
    max_norm: f64,
) -> Result<f64> {
    // PyTorch's, which keeps the divisor away from zero.
    const TINY: f64 = 1e-6;
    let norm = global_norm(grads, parameters)?;
    let factor = max_norm / (norm + TINY);
    if norm.is_finite() && factor < 1.0 {
        for (_, var) in parameters {
            if let Some(grad) = grads.get(var) {
                let shortened = (widened(&grad.detach())? * factor)?.to_dtype(grad.dtype())?;
                grads.insert(var, shortened);
            }
        }
    }
    Ok(norm)
}

/// The name of the first variable whose gradient has a NaN or infinite element.
///
/// # Errors
/// If a device operation fails.
pub fn first_non_finite<'p>(grads: &GradStore, parameters: &'p [(String, Var)]) -> Result<Option<&'p str>> {
    for (name, var) in parameters {
        if let Some(grad) = grads.get(var)
            && !sum_of_squares(grad)?.is_finite()
        {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// How many elements one thread sums up at a time.
const CHUNK: usize = 1 << 14;

/// The sum of the squares, in f64 where the device has it.
pub(super) fn sum_of_squares(tensor: &Tensor) -> candle_core::Result<f64> {
    if !tensor.device().is_cpu() {
        if tensor.dtype() == DType::F64 {
            return tensor.sqr()?.sum_all()?.to_scalar::<f64>();
        }
        return Ok(f64::from(tensor.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_scalar::<f32>()?));
    }
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("a gradient in main memory is contiguous once it is made so")
    };
    Ok(match storage {
        CpuStorage::F32(values) => squares(&values[start..end], f64::from),
        CpuStorage::F64(values) => squares(&values[start..end], |value| value),
        CpuStorage::F16(values) => squares(&values[start..end], half::f16::to_f64),
        CpuStorage::BF16(values) => squares(&values[start..end], half::bf16::to_f64),
        _ => bail!("a gradient holds {:?}, not floats", tensor.dtype()),
    })
}

/// Sums of pieces of a fixed size, added in order: the result does not depend on the number of threads.
fn squares<T: Copy + Sync>(values: &[T], widen: impl Fn(T) -> f64 + Sync) -> f64 {
    let piece = |values: &[T]| {
        // Eight sums side by side are independent, so the processor can compute them in parallel.
        let mut lanes = [0.0f64; 8];
        for values in values.chunks(lanes.len()) {
            for (lane, value) in lanes.iter_mut().zip(values) {
                let value = widen(*value);
                *lane += value * value;
            }
        }
        lanes.iter().sum::<f64>()
    };
    map(values.chunks(CHUNK), piece).iter().sum()
}

#[cfg(test)]
mod tests {
    use candle_core::backprop::GradStore;
    use candle_core::{DType, Device, Tensor, Var};

    use super::{CHUNK, GradientAccumulator, clip_by_global_norm, first_non_finite, global_norm};
    use crate::ops::random::{normal, stream};

    fn parameters(shapes: &[usize], dtype: DType) -> Vec<(String, Var)> {
        let var =
            |(i, count): (usize, &usize)| (format!("v{i}"), Var::zeros(*count, dtype, &Device::Cpu).unwrap());
        shapes.iter().enumerate().map(var).collect()
    }

    fn store(parameters: &[(String, Var)], values: &[&[f32]]) -> GradStore {
        let mut grads = GradStore::default();
        for ((_, var), values) in parameters.iter().zip(values) {
            let grad = Tensor::new(*values, &Device::Cpu).unwrap().to_dtype(var.dtype()).unwrap();
            grads.insert(var, grad);
        }
        grads
    }

    fn values(grads: &GradStore, (_, var): &(String, Var)) -> Vec<f32> {
        grads.get(var).unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
    }

    /// In bf16, 256 + 1 is 256.
    #[test]
    fn gradients_in_half_precision_are_summed_in_f32() {
        let parameters = parameters(&[2], DType::BF16);
        let mut accumulator = GradientAccumulator::new(parameters.clone());
        for _ in 0..1000 {
            accumulator.add(&store(&parameters, &[&[1., -2.]])).unwrap();
        }
        let mean = accumulator.take_mean().unwrap();
        assert_eq!(mean.get(&parameters[0].1).unwrap().dtype(), DType::BF16);
        assert_eq!(values(&mean, &parameters[0]), [1., -2.]);
    }

    #[test]
    fn clipping_is_that_of_pytorch() {
        // torch 2.15: torch.nn.utils.clip_grad_norm_ with max_norm = 1.
        let parameters = parameters(&[3, 1], DType::F32);
        let mut grads = store(&parameters, &[&[3., 4., 0.], &[12.]]);
        assert_eq!(clip_by_global_norm(&mut grads, &parameters, 1.0).unwrap(), 13.0);
        let expected = [0.23076921701431274, 0.307692289352417, 0.0, 0.923076868057251];
        let found = [values(&grads, &parameters[0]), values(&grads, &parameters[1])].concat();
        assert!(found.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-7), "{found:?}");
        // The law: what was longer is now as long as allowed, and clipping again changes nothing.
        let norm = global_norm(&grads, &parameters).unwrap();
        assert!((norm - 1.0).abs() < 1e-6, "{norm}");
        clip_by_global_norm(&mut grads, &parameters, 1.1).unwrap();
        assert_eq!([values(&grads, &parameters[0]), values(&grads, &parameters[1])].concat(), found);
    }

    #[test]
    fn the_norm_is_that_of_the_composed_ops() {
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
            let count = 2 * CHUNK + 13;
            let parameters = parameters(&[count], dtype);
            let grad = normal(&mut stream(0, "grad", 0), 1.0, &[count, 13], dtype, &Device::Cpu).unwrap();
            // A column is not contiguous.
            let grad = grad.narrow(1, 3, 1).unwrap().squeeze(1).unwrap();
            let wide = grad.to_dtype(DType::F64).unwrap();
            let expected = wide.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
            let mut grads = GradStore::default();
            grads.insert(&parameters[0].1, grad);
            let found = global_norm(&grads, &parameters).unwrap();
            assert!((found / expected - 1.0).abs() < 1e-12, "{dtype:?}: {found} {expected}");
        }
    }

    #[test]
    fn values_that_are_no_numbers_are_found_and_left_alone() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let parameters = parameters(&[2, 2], DType::F32);
            let mut grads = store(&parameters, &[&[1., 2.], &[1., bad]]);
            let norm = clip_by_global_norm(&mut grads, &parameters, 1.0).unwrap();
            assert!(!norm.is_finite());
            assert_eq!(first_non_finite(&grads, &parameters).unwrap(), Some("v1"));
            assert_eq!(values(&grads, &parameters[0]), [1., 2.]);
        }
    }

    #[test]
    fn the_mean_counts_batches_without_a_gradient() {
        let parameters = parameters(&[2, 1, 1], DType::F32);
        let mut accumulator = GradientAccumulator::new(parameters.clone());
        accumulator.add(&store(&parameters, &[&[2., 4.], &[8.]])).unwrap();
        accumulator.add(&store(&parameters, &[&[4., 0.]])).unwrap();
        assert_eq!(accumulator.count(), 2);
        let mean = accumulator.take_mean().unwrap();
        assert_eq!((values(&mean, &parameters[0]), values(&mean, &parameters[1])), (vec![3., 2.], vec![4.]));
        assert!(mean.get(&parameters[2].1).is_none());
        // A single batch is passed on as it is.
        accumulator.add(&store(&parameters, &[&[5., 6.]])).unwrap();
        assert_eq!(values(&accumulator.take_mean().unwrap(), &parameters[0]), [5., 6.]);
        assert_eq!(accumulator.count(), 0);
    }
}
