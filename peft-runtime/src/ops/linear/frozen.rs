//! The frozen linear map as an op on the CPU.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Storage, Tensor, WithDType, bail};

use crate::ops::cpu::element::Element;
use crate::ops::cpu::matmul::matmul_into;
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::cpu::operand::Operand;
use crate::ops::cpu::sums::{Term, sum_into};
use crate::ops::elements::{Elements, contiguous_slice};
use crate::ops::matmul::product;

/// A contiguous input as a matrix.
pub(super) fn as_rows<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
    rows: usize,
    columns: usize,
) -> Result<Operand<'a>> {
    if !layout.is_contiguous() {
        bail!("the input of a fused op must be contiguous")
    }
    let shape = Shape::from((rows, columns));
    Operand::from_storage(storage, &Layout::contiguous_with_offset(shape, layout.start_offset()))
}

pub(super) struct FrozenLinear {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
}

impl FrozenLinear {
    /// dx = dy·W.
    pub(super) fn input_gradient(&self, grad: &Tensor, input_dims: &[usize]) -> Result<Tensor> {
        let out_features = self.weight.dim(0)?;
        let rows = input_dims[..input_dims.len() - 1].iter().product::<usize>();
        let grad = grad.contiguous()?.reshape((rows, out_features))?;
        product(&grad, &self.weight_for(grad.dtype())?, 1.0)?.reshape(input_dims)
    }

    /// The product on rows in main memory; the result is initialised with the bias.
    pub(super) fn forward_rows<T: WithDType>(&self, x: &[T], rows: usize) -> Result<Vec<T>> {
        let (mut y, write) = match &self.bias {
            Some(bias) => (bias.to_dtype(T::DTYPE)?.to_vec1::<T>()?.repeat(rows), Write::Add),
            None => (vec![T::from_f64(0.0); rows * self.weight.dim(0)?], Write::Replace),
        };
        self.multiply(&mut y, write, x, rows)?;
        Ok(y)
    }

    /// `y (+)= x·Wᵀ` on rows in main memory.
    pub(super) fn multiply<T: WithDType>(
        &self,
        y: &mut [T],
        write: Write,
        x: &[T],
        rows: usize,
    ) -> Result<()> {
        let in_features = self.weight.dim(1)?;
        let (storage, layout) = self.weight.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            bail!("the weight of a linear layer is on another device")
        };
        let weight = Matrix::from_layout(storage.as_slice::<T>()?, layout)?.transposed();
        matmul_into(y, write, 1.0, Matrix::contiguous(x, rows, in_features)?, weight)
    }

    /// `y (+)= x·Wᵀ + b + others`, summed in f32 and rounded once, where not everything is f32.
    pub(super) fn sum_mixed<T: Element>(
        &self,
        y: &mut [T],
        write: Write,
        x: Operand<'_>,
        others: Option<Term<'_>>,
    ) -> Result<()> {
        let weight = self.weight_for(T::DTYPE)?;
        let elements = Elements::of(&weight);
        let product = Term { scale: 1.0, lhs: x, rhs: elements.operand()?.transposed() };
        let bias = match &self.bias {
            Some(bias) => Some(bias.to_dtype(DType::F32)?.to_vec1::<f32>()?),
            None => None,
        };
        let shape = (x.rows(), self.weight.dim(0)?);
        let terms = [Some(product), others];
        let terms: Vec<Term<'_>> = terms.into_iter().flatten().collect();
        sum_into(y, shape, write, bias.as_deref(), &terms)
    }

    /// The weight for a product with a factor in `dtype`: as it is, except that one in f64 is rounded to f32 for a factor that is not f64.
    pub(super) fn weight_for(&self, dtype: DType) -> Result<Tensor> {
        let narrows = self.weight.dtype() == DType::F64 && dtype != DType::F64;
        if narrows { self.weight.to_dtype(DType::F32) } else { Ok(self.weight.clone()) }
    }

    /// y for a contiguous input.
    fn mixed_rows<T: Element>(&self, x: Operand<'_>) -> Result<Vec<T>> {
        let mut y = vec![T::from_f64(0.0); x.rows() * self.weight.dim(0)?];
        self.sum_mixed(&mut y, Write::Replace, x, None)?;
        Ok(y)
    }
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (out_features, in_features) = self.weight.dims2()?;
        let rows = layout.shape().elem_count() / in_features.max(1);
        let matrix = || as_rows(storage, layout, rows, in_features);
        let y = match storage {
            CpuStorage::F32(x) if self.weight.dtype() == DType::F32 => {
                CpuStorage::F32(self.forward_rows(contiguous_slice(x, layout)?, rows)?)
            }
            CpuStorage::F64(x) => CpuStorage::F64(self.forward_rows(contiguous_slice(x, layout)?, rows)?),
            CpuStorage::F32(_) => CpuStorage::F32(self.mixed_rows(matrix()?)?),
            CpuStorage::F16(_) => CpuStorage::F16(self.mixed_rows(matrix()?)?),
            CpuStorage::BF16(_) => CpuStorage::BF16(self.mixed_rows(matrix()?)?),
            _ => bail!("a linear layer takes floats only"),
        };
        let mut dims = layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = out_features;
        }
        Ok((y, Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.input_gradient(grad, x.dims())?))
    }
}
