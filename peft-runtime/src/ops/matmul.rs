//! Two-dimensional products of tensors outside any graph.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, InplaceOp3, Layout, Result, Tensor, bail};

use super::cpu::matmul::{Matrix, Write, matmul_into};
use super::is_half_on_cpu;

/// `scale · lhs · rhs` of matrices with any strides; half precision on the CPU is summed in f32 and rounded once.
pub(crate) fn product(lhs: &Tensor, rhs: &Tensor, scale: f64) -> Result<Tensor> {
    if is_half_on_cpu(lhs) {
        return product(&lhs.to_dtype(DType::F32)?, &rhs.to_dtype(DType::F32)?, scale)?.to_dtype(lhs.dtype());
    }
    if lhs.device().is_cpu() {
        let zeros = Tensor::zeros((lhs.dim(0)?, rhs.dim(1)?), lhs.dtype(), lhs.device())?;
        return add_product(zeros, lhs, rhs, scale);
    }
    scaled(lhs.matmul(rhs)?, scale)
}

/// `sum + scale · lhs · rhs`; on the CPU without a temporary. `sum` must be nobody else's.
pub(crate) fn add_product(sum: Tensor, lhs: &Tensor, rhs: &Tensor, scale: f64) -> Result<Tensor> {
    if lhs.device().is_cpu() && !is_half_on_cpu(lhs) {
        sum.inplace_op3(lhs, rhs, &AddProduct { scale })?;
        return Ok(sum);
    }
    sum + product(lhs, rhs, scale)?
}

fn scaled(tensor: Tensor, scale: f64) -> Result<Tensor> {
    if scale == 1.0 { Ok(tensor) } else { tensor * scale }
}

struct AddProduct {
    scale: f64,
}

impl InplaceOp3 for AddProduct {
    fn name(&self) -> &'static str {
        "add-product"
    }

    fn cpu_fwd(
        &self,
        sum: &mut CpuStorage,
        sum_layout: &Layout,
        lhs: &CpuStorage,
        lhs_layout: &Layout,
        rhs: &CpuStorage,
        rhs_layout: &Layout,
    ) -> Result<()> {
        let Some((start, end)) = sum_layout.contiguous_offsets() else {
            bail!("the sum of a product must be contiguous")
        };
        match (sum, lhs, rhs) {
            (CpuStorage::F32(sum), CpuStorage::F32(lhs), CpuStorage::F32(rhs)) => {
                let lhs = Matrix::from_layout(lhs, lhs_layout)?;
                matmul_into(
                    &mut sum[start..end],
                    Write::Add,
                    self.scale,
                    lhs,
                    Matrix::from_layout(rhs, rhs_layout)?,
                )
            }
            (CpuStorage::F64(sum), CpuStorage::F64(lhs), CpuStorage::F64(rhs)) => {
                let lhs = Matrix::from_layout(lhs, lhs_layout)?;
                matmul_into(
                    &mut sum[start..end],
                    Write::Add,
                    self.scale,
                    lhs,
                    Matrix::from_layout(rhs, rhs_layout)?,
                )
            }
            (sum, lhs, rhs) => {
                bail!("cannot add a product of {:?} and {:?} to {:?}", lhs.dtype(), rhs.dtype(), sum.dtype())
            }
        }
    }
}
