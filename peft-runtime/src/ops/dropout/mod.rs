//! Dropout as one op, which keeps no mask for its backward pass.

mod mask;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};

use crate::ops::constant::mul_constant;
use crate::ops::cpu::float::Float;
use crate::ops::cpu::threads::for_each;
use crate::ops::elements::contiguous_slice;
use crate::ops::graph::carried::ApplyCarried;

pub use self::mask::DropoutMask;

/// How many elements of a tensor make a row of its mask, and how many one task computes. Changing this number changes
/// the masks.
const ROW: usize = 4096;

/// `x` with the elements that `mask` drops as zeros and the others scaled; `x` has any shape and holds floats.
pub(crate) fn dropout(x: &Tensor, mask: DropoutMask) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.carry_op1(Dropped { mask });
    }
    let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let factors = dropout(&Tensor::ones(x.dims(), wide, &Device::Cpu)?, mask)?;
    mul_constant(x, &factors.to_dtype(x.dtype())?.to_device(x.device())?)
}

/// The op on the CPU. It is linear and its own transpose.
struct Dropped {
    mask: DropoutMask,
}

impl Dropped {
    fn apply<T: Float>(&self, x: &[T]) -> Vec<T> {
        let mut y = vec![T::from_f64(0.0); x.len()];
        let rows = y.chunks_mut(ROW).zip(x.chunks(ROW));
        for_each(rows.enumerate(), |(row, (y, x))| {
            let [mut wide_x, mut wide_y] = [const { Vec::new() }; 2];
            let x = T::read(x, &mut wide_x);
            T::write(y, &mut wide_y, |y| {
                y.copy_from_slice(x);
                self.mask.apply(row, y);
            });
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
            CpuStorage::F16(x) => CpuStorage::F16(self.apply(contiguous_slice(x, layout)?)),
            CpuStorage::BF16(x) => CpuStorage::BF16(self.apply(contiguous_slice(x, layout)?)),
            storage => bail!("dropout takes floats, not {:?}", storage.dtype()),
        };
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        grad.contiguous()?.apply_op1_no_bwd(self).map(Some)
    }
}

#[cfg(test)]
mod tests;
