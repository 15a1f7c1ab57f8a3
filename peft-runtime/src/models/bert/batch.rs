//! Batches with padding, and without it between layers.

use candle_core::{Result, Tensor};

use crate::nn::Packing;

/// Where the tokens of a batch are.
pub(super) struct Batch<'a> {
    /// `[batch, length]`: 0 for padding.
    pub(super) mask: Option<&'a Tensor>,
    /// With it, hidden states between layers have the shape `[tokens, hidden]`, else `[batch, length, hidden]`.
    pub(super) packing: Option<&'a Packing>,
}

impl Batch<'_> {
    /// Hidden states as they are between layers.
    pub(super) fn pack(&self, padded: Tensor) -> Result<Tensor> {
        match self.packing {
            Some(packing) => packing.pack(&padded),
            None => Ok(padded),
        }
    }

    /// Hidden states as attention needs them, `[batch, length, hidden]`.
    pub(super) fn unpack(&self, hidden: Tensor) -> Result<Tensor> {
        match self.packing {
            Some(packing) => packing.unpack(&hidden),
            None => Ok(hidden),
        }
    }
}
