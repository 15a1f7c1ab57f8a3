//! A tensor in a file as torch has it: a view into a storage.

use std::ops::Range;

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::fault::Fault;
use crate::error::Result;

/// The view, in elements of the storage.
pub(in crate::store::formats::source) struct StridedTensor {
    pub(super) dtype: Dtype,
    pub(super) offset: usize,
    pub(in crate::store::formats::source) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
    /// Where in the file the storage is.
    pub(super) storage: Range<usize>,
}

impl StridedTensor {
    fn size(&self) -> usize {
        self.dtype.bitsize() / 8
    }

    /// The number of its bytes, if all of its elements lie in the storage, each at its own place.
    ///
    /// # Errors
    /// If they do not.
    pub(super) fn check(&self) -> Result<usize, Fault> {
        let outside = || {
            let length = self.storage.len();
            Fault(format!("of shape {:?} does not lie in its storage of {length} bytes", self.shape))
        };
        let elements =
            self.shape.iter().try_fold(1usize, |product, size| product.checked_mul((*size).max(1)));
        let elements = elements.ok_or_else(outside)?;
        let size = elements.checked_mul(self.size()).ok_or_else(outside)?;
        if self.shape.contains(&0) {
            return Ok(0);
        }
        let mut last = self.offset;
        for (size, stride) in self.shape.iter().zip(&self.strides) {
            if *size > 1 && *stride == 0 {
                return Fault::new(format!(
                    "repeats elements: its shape is {:?} with strides {:?}",
                    self.shape, self.strides
                ));
            }
            last = (size - 1)
                .checked_mul(*stride)
                .and_then(|step| last.checked_add(step))
                .ok_or_else(outside)?;
        }
        let end = last.checked_add(1).and_then(|end| end.checked_mul(self.size()));
        if end.is_none_or(|end| end > self.storage.len()) || size > self.storage.len() {
            return Err(outside());
        }
        Ok(size)
    }

    /// Whether its elements lie one after the other.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1usize;
        self.shape.iter().zip(&self.strides).rev().all(|(size, stride)| {
            let fits = *size == 1 || *stride == expected;
            expected = expected.saturating_mul(*size);
            fits
        })
    }

    /// Reads the tensor, which was checked, out of the file.
    ///
    /// # Errors
    /// If its dtype is not one of candle's.
    pub(in crate::store::formats::source) fn read(&self, file: &[u8]) -> Result<Tensor> {
        let bytes = file.get(self.storage.clone()).unwrap_or_default();
        let size = self.size();
        let elements: usize = self.shape.iter().product();
        // Values of true and false are bytes.
        let dtype = if self.dtype == Dtype::BOOL { Dtype::U8 } else { self.dtype };
        if elements == 0 || self.is_contiguous() {
            let start = if elements == 0 { 0 } else { self.offset * size };
            let own = bytes.get(start..start + elements * size).unwrap_or_default();
            return Ok(TensorView::new(dtype, self.shape.clone(), own)?.load(&Device::Cpu)?);
        }
        let mut own = Vec::with_capacity(elements * size);
        let mut index = vec![0usize; self.shape.len()];
        for _ in 0..elements {
            let at: usize = index.iter().zip(&self.strides).map(|(index, stride)| index * stride).sum();
            let start = (self.offset + at) * size;
            own.extend_from_slice(bytes.get(start..start + size).unwrap_or_default());
            for (index, length) in index.iter_mut().zip(&self.shape).rev() {
                *index += 1;
                if *index < *length {
                    break;
                }
                *index = 0;
            }
        }
        Ok(TensorView::new(dtype, self.shape.clone(), &own)?.load(&Device::Cpu)?)
    }
}
