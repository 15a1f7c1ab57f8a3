//! Dropout as one op, which keeps no mask for its backward pass.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::constant::mul_constant;
use super::cpu::real::Real;
use super::is_half_on_cpu;
use super::linear::contiguous_slice;

pub use super::cpu::dropout::DropoutMask;

/// The elements of a tensor that make a row of its mask, and that one task computes. Another number means other masks.
const ROW: usize = 4096;

/// `x` with the elements that `mask` drops as zeros and the others scaled; `x` has any shape and holds floats.
pub(crate) fn dropout(x: &Tensor, mask: DropoutMask) -> Result<Tensor> {
    if is_half_on_cpu(x) {
        return dropout(&x.to_dtype(DType::F32)?, mask)?.to_dtype(x.dtype());
    }
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op1(Dropped { mask });
    }
    let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let factors = dropout(&Tensor::ones(x.dims(), wide, &Device::Cpu)?, mask)?;
    mul_constant(x, &factors.to_dtype(x.dtype())?.to_device(x.device())?)
}

/// The op on the CPU. It is linear, and its own transpose.
struct Dropped {
    mask: DropoutMask,
}

impl Dropped {
    fn apply<T: Real>(&self, x: &[T]) -> Vec<T> {
        let mut y = vec![T::ZERO; x.len()];
        let rows = y.par_chunks_mut(ROW).zip(x.par_chunks(ROW));
        rows.enumerate().for_each(|(row, (y, x))| {
            y.copy_from_slice(x);
            self.mask.apply(row, y);
        });
        y
    }
}

impl CustomOp1 for Dropped {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = match storage {
            CpuStorage::F32(x) => CpuStorage::F32(self.apply(contiguous_slice(x, layout)?)),
            CpuStorage::F64(x) => CpuStorage::F64(self.apply(contiguous_slice(x, layout)?)),
            storage => bail!("dropout takes floats, not {:?}", storage.dtype()),
        };
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        grad.contiguous()?.apply_op1_no_bwd(self).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::{DropoutMask, ROW, dropout};
    use crate::ops::constant::mul_constant;
    use crate::ops::gradcheck::{assert_agree, assert_close, assert_differences, assert_precise, values};

    /// What a mask multiplies by, in the order of the elements.
    fn factors(mask: DropoutMask, dims: &[usize]) -> Tensor {
        let mut factors = vec![1f64; dims.iter().product()];
        for (row, factors) in factors.chunks_mut(ROW).enumerate() {
            mask.apply(row, factors);
        }
        Tensor::from_vec(factors, dims, &Device::Cpu).unwrap()
    }

    #[test]
    fn value_and_gradient_are_those_of_a_product_with_the_mask_and_of_difference_quotients() {
        // Several rows of the mask, and a tail.
        let (x, mask) = ([values("x", &[3, 70, 50])], DropoutMask::new(5, 0.3));
        let by_product = factors(mask, x[0].dims());
        let ours = |t: &[Tensor]| dropout(&t[0], mask);
        assert_agree(&ours, &|t| mul_constant(&t[0], &by_product), &x, 1e-12, "dropout");
        assert_differences(&ours, &x, 1e-6, "dropout");
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F16, 2e-3), (DType::BF16, 2e-2)] {
            assert_precise(&ours, &x, dtype, tolerance, "dropout");
        }
    }

    #[test]
    fn the_mean_is_kept() {
        let ones = Tensor::ones((100, 1000), DType::F32, &Device::Cpu).unwrap();
        for key in 0..3 {
            let mean = dropout(&ones, DropoutMask::new(key, 0.25)).unwrap().mean_all().unwrap();
            let mean = mean.to_scalar::<f32>().unwrap();
            // Five standard errors.
            assert!((mean - 1.0).abs() < 0.01, "{mean}");
        }
    }

    #[test]
    fn strided_inputs_give_the_same_and_integers_are_refused() {
        let mask = DropoutMask::new(1, 0.5);
        let x = values("x", &[40, 30]).t().unwrap();
        let copied = x.force_contiguous().unwrap();
        assert_close(&dropout(&x, mask).unwrap(), &dropout(&copied, mask).unwrap(), 0.0, "strided");
        assert!(dropout(&Tensor::ones(3, DType::U32, &Device::Cpu).unwrap(), mask).is_err());
    }

    #[test]
    fn an_empty_tensor_stays_one() {
        let empty = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(dropout(&empty, DropoutMask::new(1, 0.5)).unwrap().dims(), [0, 4]);
    }
}
