//! Two-dimensional products of tensors outside any graph.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, InplaceOp3, Layout, Result, Tensor, WithDType, bail};
use half::{bf16, f16};

use crate::ops::cpu::element::Element;
use crate::ops::cpu::matmul::matmul_into;
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::cpu::operand::Operand;
use crate::ops::cpu::sums::{Term, sum_into};
use crate::ops::elements::Elements;
use crate::ops::{is_half, promoted};

/// `scale · lhs · rhs` of matrices with any strides, in the dtype of `lhs`; half precision on the CPU is summed in f32 and
/// rounded once.
pub(crate) fn product(lhs: &Tensor, rhs: &Tensor, scale: f64) -> Result<Tensor> {
    product_as(lhs.dtype(), lhs, rhs, scale)
}

/// [`product`] in another dtype. On the CPU the factors may have different ones, except for f64.
pub(crate) fn product_as(dtype: DType, lhs: &Tensor, rhs: &Tensor, scale: f64) -> Result<Tensor> {
    if lhs.device().is_cpu() {
        // The system provides memory of this size already zeroed; the product is the first to touch it.
        let zeros = Tensor::zeros((lhs.dim(0)?, rhs.dim(1)?), dtype, lhs.device())?;
        zeros.inplace_op3(lhs, rhs, &IntoTensor { write: Write::Replace, scale })?;
        return Ok(zeros);
    }
    let wide = promoted(lhs.dtype(), rhs.dtype());
    scaled(lhs.to_dtype(wide)?.matmul(&rhs.to_dtype(wide)?)?, scale)?.to_dtype(dtype)
}

/// `sum + scale · lhs · rhs`; on the CPU without a temporary. `sum` must not be shared.
pub(crate) fn add_product(sum: Tensor, lhs: &Tensor, rhs: &Tensor, scale: f64) -> Result<Tensor> {
    if lhs.device().is_cpu() {
        sum.inplace_op3(lhs, rhs, &IntoTensor { write: Write::Add, scale })?;
        return Ok(sum);
    }
    sum + product(lhs, rhs, scale)?
}

/// `lhs · rhs` of each pair, added up in `dtype`: half precision on the CPU is rounded once, after the sum.
pub(crate) fn sum_of_products(dtype: DType, pairs: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
    let [(first, second), others @ ..] = pairs else { bail!("a sum of products has at least one") };
    if !first.device().is_cpu() || !is_half(dtype) {
        let sum = product_as(dtype, first, second, 1.0)?;
        return others.iter().try_fold(sum, |sum, (lhs, rhs)| add_product(sum, lhs, rhs, 1.0));
    }
    match dtype {
        DType::BF16 => half_sum::<bf16>(pairs),
        _ => half_sum::<f16>(pairs),
    }
}

fn half_sum<T: Element>(pairs: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
    let shape = (pairs[0].0.dim(0)?, pairs[0].1.dim(1)?);
    let elements: Vec<_> = pairs.iter().map(|(lhs, rhs)| (Elements::of(lhs), Elements::of(rhs))).collect();
    let mut sum = vec![T::from_f64(0.0); shape.0 * shape.1];
    let mut terms = Vec::with_capacity(elements.len());
    for (lhs, rhs) in &elements {
        terms.push(Term { scale: 1.0, lhs: lhs.operand()?, rhs: rhs.operand()? });
    }
    sum_into(&mut sum, shape, Write::Replace, None, &terms)?;
    Tensor::from_vec(sum, shape, pairs[0].0.device())
}

fn scaled(tensor: Tensor, scale: f64) -> Result<Tensor> {
    if scale == 1.0 { Ok(tensor) } else { tensor * scale }
}

/// Writes a product into a tensor or adds it to what the tensor holds.
struct IntoTensor {
    write: Write,
    scale: f64,
}

impl IntoTensor {
    /// Factors of the destination's type.
    fn alike<T: WithDType>(
        &self,
        destination: &mut [T],
        (lhs, lhs_layout): (&[T], &Layout),
        (rhs, rhs_layout): (&[T], &Layout),
    ) -> Result<()> {
        let (lhs, rhs) = (Matrix::from_layout(lhs, lhs_layout)?, Matrix::from_layout(rhs, rhs_layout)?);
        matmul_into(destination, self.write, self.scale, lhs, rhs)
    }

    /// Factors of any types that f32 holds.
    fn mixed<T: Element>(&self, destination: &mut [T], lhs: Operand<'_>, rhs: Operand<'_>) -> Result<()> {
        let term = Term { scale: self.scale, lhs, rhs };
        sum_into(destination, (lhs.rows(), rhs.columns()), self.write, None, &[term])
    }
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
        let operands = || {
            let lhs = Operand::from_storage(lhs, lhs_layout)?;
            Ok::<_, candle_core::Error>((lhs, Operand::from_storage(rhs, rhs_layout)?))
        };
        match (destination, lhs, rhs) {
            (CpuStorage::F32(to), CpuStorage::F32(lhs), CpuStorage::F32(rhs)) => {
                self.alike(&mut to[start..end], (lhs, lhs_layout), (rhs, rhs_layout))
            }
            (CpuStorage::F64(to), CpuStorage::F64(lhs), CpuStorage::F64(rhs)) => {
                self.alike(&mut to[start..end], (lhs, lhs_layout), (rhs, rhs_layout))
            }
            (CpuStorage::F32(to), ..) => {
                let (lhs, rhs) = operands()?;
                self.mixed(&mut to[start..end], lhs, rhs)
            }
            (CpuStorage::BF16(to), ..) => {
                let (lhs, rhs) = operands()?;
                self.mixed(&mut to[start..end], lhs, rhs)
            }
            (CpuStorage::F16(to), ..) => {
                let (lhs, rhs) = operands()?;
                self.mixed(&mut to[start..end], lhs, rhs)
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
