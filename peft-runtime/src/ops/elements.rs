//! The elements of a tensor in main memory as a slice.

use candle_core::{Layout, Result, Storage, StorageRef, Tensor, WithDType, bail};

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

/// The elements that a contiguous layout describes.
pub(crate) fn contiguous_slice<'s, T>(data: &'s [T], layout: &Layout) -> Result<&'s [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("the input of a fused op must be contiguous"),
    }
}
