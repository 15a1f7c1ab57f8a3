//! What is written into files of other programs.

use candle_core::Tensor;

/// What an adapter has on one layer.
pub(in crate::store) struct ExportedLayer<'l> {
    pub(in crate::store) path: &'l str,
    pub(in crate::store) rank: Option<usize>,
    pub(in crate::store) scaling: Option<f64>,
    /// The tensors by the ends of PEFT's keys.
    pub(in crate::store) tensors: &'l [(String, Tensor)],
}

/// What PEFT calls DoRA's lengths.
pub(super) const MAGNITUDE: &str = "lora_magnitude_vector";
