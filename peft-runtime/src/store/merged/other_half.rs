//! The weight and bias of a layer are merged together but asked for one at a time.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};

/// Half of the layer that was merged last, until it is asked for or another layer is merged.
#[derive(Default)]
pub(super) struct OtherHalf(Mutex<Option<MergedHalf>>);

/// A merged weight or bias.
struct MergedHalf {
    /// Its name in the base model.
    name: String,
    /// The dtype that was asked for; a tensor from an adapter may have another one.
    dtype: DType,
    tensor: Tensor,
}

impl OtherHalf {
    /// Keeps a tensor, replacing the one before.
    pub(super) fn keep(&self, name: String, dtype: DType, tensor: Tensor) {
        let half = MergedHalf { name, dtype, tensor };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(half);
    }

    /// Takes the kept tensor out, if it has this name, dtype and device.
    pub(super) fn take(&self, name: &str, dtype: DType, device: &Device) -> Option<Tensor> {
        let mut half = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |half: &mut MergedHalf| {
            half.name == name && half.dtype == dtype && half.tensor.device().same_device(device)
        };
        half.take_if(is_it).map(|half| half.tensor)
    }

    /// Forgets what was kept.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
