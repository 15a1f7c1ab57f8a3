//! The elements of a tensor in main memory as a slice.

use candle_core::{DType, Layout, Result, Storage, StorageRef, Tensor, WithDType, bail};
use half::{bf16, f16};

use crate::ops::cpu::element::{Element, round_all, widen_all};
use crate::ops::cpu::operand::Operand;

/// A tensor's storage, held for reading.
pub(crate) struct Elements<'t> {
    storage: StorageRef<'t>,
    layout: &'t Layout,
}

impl<'t> Elements<'t> {
    pub(crate) fn of(tensor: &'t Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout }
    }

    pub(crate) fn layout(&self) -> &'t Layout {
        self.layout
    }

    /// The whole storage, which [`layout`](Self::layout) describes the tensor over.
    pub(crate) fn data<T: WithDType>(&self) -> Result<&[T]> {
        match &*self.storage {
            Storage::Cpu(storage) => storage.as_slice::<T>(),
            _ => bail!("an operand of an op on the CPU is on another device"),
        }
    }

    /// The tensor as a factor of a product that is summed in f32; fails if it is not a matrix of f32 or half precision.
    pub(crate) fn operand(&self) -> Result<Operand<'_>> {
        match &*self.storage {
            Storage::Cpu(storage) => Operand::from_storage(storage, self.layout),
            _ => bail!("an operand of an op on the CPU is on another device"),
        }
    }

    /// The elements in order; fails if the tensor is not contiguous.
    pub(crate) fn as_slice<T: WithDType>(&self) -> Result<&[T]> {
        contiguous_slice(self.data()?, self.layout)
    }
}

/// The tensor in another dtype, outside of any graph; on the CPU all threads convert halves to f32 and back.
pub(crate) fn converted(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    let tensor = tensor.detach();
    if !tensor.device().is_cpu() {
        return tensor.to_dtype(dtype);
    }
    match (tensor.dtype(), dtype) {
        (DType::BF16, DType::F32) => widened::<bf16>(&tensor),
        (DType::F16, DType::F32) => widened::<f16>(&tensor),
        (DType::F32, DType::BF16) => rounded::<bf16>(&tensor),
        (DType::F32, DType::F16) => rounded::<f16>(&tensor),
        _ => tensor.to_dtype(dtype),
    }
}

fn widened<T: Element>(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.contiguous()?;
    let elements = Elements::of(&tensor);
    let values = elements.as_slice::<T>()?;
    let mut wide = vec![0f32; values.len()];
    widen_all(values, &mut wide);
    Tensor::from_vec(wide, tensor.shape(), tensor.device())
}

fn rounded<T: Element>(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.contiguous()?;
    let elements = Elements::of(&tensor);
    let values = elements.as_slice::<f32>()?;
    let mut rounded = vec![T::from_f64(0.0); values.len()];
    round_all(values, &mut rounded);
    Tensor::from_vec(rounded, tensor.shape(), tensor.device())
}

/// The elements that a contiguous layout describes.
pub(crate) fn contiguous_slice<'s, T>(data: &'s [T], layout: &Layout) -> Result<&'s [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("the input of a fused op must be contiguous"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::converted;
    use crate::ops::testing::random_as;

    #[test]
    fn values_are_converted_as_candle_converts_them() {
        for (from, to) in [(DType::F32, DType::BF16), (DType::F16, DType::F32), (DType::F64, DType::F16)] {
            let x = random_as(from, "x", &[3, 50, 7]).transpose(0, 1).unwrap();
            let (ours, theirs) = (converted(&x, to).unwrap(), x.to_dtype(to).unwrap());
            let bits = |tensor: &candle_core::Tensor| {
                let wide = tensor.to_dtype(DType::F64).unwrap().to_device(&Device::Cpu).unwrap();
                wide.flatten_all().unwrap().to_vec1::<f64>().unwrap()
            };
            assert_eq!((ours.dtype(), ours.dims(), bits(&ours)), (to, theirs.dims(), bits(&theirs)));
        }
    }
}
