//! Two-dimensional products of tensors outside any graph.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, InplaceOp3, Layout, Result, Tensor, bail};

use crate::ops::cpu::matmul::matmul_into;
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::is_half_on_cpu;

/// `scale · lhs · rhs` of matrices with any strides; half precision on the CPU is summed in f32 and rounded once.
pub(crate) fn product(lhs: &Tensor, rhs: &Tensor, scale: f64) -> Result<Tensor> {
    if is_half_on_cpu(lhs) {
        return product(&lhs.to_dtype(DType::F32)?, &rhs.to_dtype(DType::F32)?, scale)?.to_dtype(lhs.dtype());
    }
    if lhs.device().is_cpu() {
        // The system provides memory of this size already zeroed; the product is the first to touch it.
        let zeros = Tensor::zeros((lhs.dim(0)?, rhs.dim(1)?), lhs.dtype(), lhs.device())?;
        zeros.inplace_op3(lhs, rhs, &IntoTensor { write: Write::Replace, scale })?;
        return Ok(zeros);
    }
    scaled(lhs.matmul(rhs)?, scale)
}

/// `sum + scale · lhs · rhs`; on the CPU without a temporary. `sum` must not be shared.
pub(crate) fn add_product(sum: Tensor, lhs: &Tensor, rhs: &Tensor, scale: f64) -> Result<Tensor> {
    if lhs.device().is_cpu() && !is_half_on_cpu(lhs) {
        sum.inplace_op3(lhs, rhs, &IntoTensor { write: Write::Add, scale })?;
        return Ok(sum);
    }
    sum + product(lhs, rhs, scale)?
}

fn scaled(tensor: Tensor, scale: f64) -> Result<Tensor> {
    if scale == 1.0 { Ok(tensor) } else { tensor * scale }
}

/// Writes a product into a tensor or adds it to what the tensor holds.
struct IntoTensor {
    write: Write,
    scale: f64,
}

impl InplaceOp3 for IntoTensor {
    fn name(&self) -> &'static str {
        "product-into-tensor"
    }

    fn cpu_fwd(
        &self,
        destination: &mut CpuStorage,
        layout: &Layout,
        lhs: &CpuStorage,
        lhs_layout: &Layout,
        rhs: &CpuStorage,
        rhs_layout: &Layout,
    ) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("the destination of a product must be contiguous")
        };
        match (destination, lhs, rhs) {
            (CpuStorage::F32(destination), CpuStorage::F32(lhs), CpuStorage::F32(rhs)) => {
                let lhs = Matrix::from_layout(lhs, lhs_layout)?;
                matmul_into(
                    &mut destination[start..end],
                    self.write,
                    self.scale,
                    lhs,
                    Matrix::from_layout(rhs, rhs_layout)?,
                )
            }
            (CpuStorage::F64(destination), CpuStorage::F64(lhs), CpuStorage::F64(rhs)) => {
                let lhs = Matrix::from_layout(lhs, lhs_layout)?;
                matmul_into(
                    &mut destination[start..end],
                    self.write,
                    self.scale,
                    lhs,
                    Matrix::from_layout(rhs, rhs_layout)?,
                )
            }
            (destination, lhs, rhs) => {
                bail!(
                    "cannot write a product of {:?} and {:?} into {:?}",
                    lhs.dtype(),
                    rhs.dtype(),
                    destination.dtype()
                )
            }
        }
    }
}
