//! Drop-in constructors with candle-nn's names that build [`Adapted`] layers.
//!
//! Moving a candle model over means changing one `use`, deriving `Injectable`, and writing `Adapted<Linear>` where it said
//! `Linear`. The norms here are differentiable, which candle-nn's own are not on contiguous inputs, and so are
//! the functions between layers: attention, rotary embedding, gates, losses. [`ops`], [`rotary_emb`] and [`kv_cache`] have those of the
//! modules of candle-nn with these names.
//!
//! ```
//! use candle_core::{DType, Device};
//! use candle_nn::{Linear, VarBuilder, VarMap};
//! use peft_runtime::nn;
//! use peft_runtime::prelude::*;
//!
//! #[derive(Injectable)]
//! struct Mlp {
//!     up: Adapted<Linear>,
//!     down: Adapted<Linear>,
//! }
//!
//! let varmap = VarMap::new();
//! let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
//! let mut mlp = Mlp { up: nn::linear(8, 32, vb.pp("up"))?, down: nn::linear(32, 8, vb.pp("down"))? };
//! mlp.inject_adapter(&LoraConfig::new(4, 8.0).with_targets(targets!(Mlp; "up", "down")), "default")?;
//! # Ok::<(), peft_runtime::Error>(())
//! ```

pub mod kv_cache;
pub mod ops;
mod recomputed;
pub mod rotary_emb;
mod transposed;

use candle_core::Result;
use candle_nn::{
    Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Embedding, LayerNorm, LayerNormConfig, Linear, RmsNorm,
    VarBuilder,
};

use crate::layer::Adapted;

pub use crate::layer::{AnyLinear, Dropout, PaddedEmbedding, QuantizedLinear, TransposedLinear, Weight};
pub use crate::ops::attention::rotated::rotary_attention;
pub use crate::ops::attention::{AttentionOptions, attention};
pub use crate::ops::cross_entropy::{count_targets, cross_entropy, linear_cross_entropy};
pub use crate::ops::dropout::DropoutMask;
pub use crate::ops::gated::{geglu, gelu, gelu_erf, swiglu};
pub use crate::ops::linear::linear as linear_forward;
pub use crate::ops::packing::Packing;
pub use crate::ops::rotary::rotary;
pub use recomputed::recomputed;
pub use transposed::{transposed_linear, transposed_linear_no_bias};

/// A linear layer with a bias: `weight` of shape `[out, in]`, `bias` of shape `[out]`.
///
/// # Errors
/// If the builder has no such tensors.
pub fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder<'_>) -> Result<Adapted<Linear>> {
    candle_nn::linear(in_dim, out_dim, vb).map(Adapted::new)
}

/// A linear layer without a bias.
///
/// # Errors
/// If the builder has no such tensor.
pub fn linear_no_bias(in_dim: usize, out_dim: usize, vb: VarBuilder<'_>) -> Result<Adapted<Linear>> {
    candle_nn::linear_no_bias(in_dim, out_dim, vb).map(Adapted::new)
}

/// A linear layer that has a bias if `bias` says so.
///
/// # Errors
/// If the builder has no such tensors.
pub fn linear_b(in_dim: usize, out_dim: usize, bias: bool, vb: VarBuilder<'_>) -> Result<Adapted<Linear>> {
    candle_nn::linear_b(in_dim, out_dim, bias, vb).map(Adapted::new)
}

/// An embedding: `weight` of shape `[in, out]`.
///
/// # Errors
/// If the builder has no such tensor.
pub fn embedding(in_size: usize, out_size: usize, vb: VarBuilder<'_>) -> Result<Adapted<Embedding>> {
    candle_nn::embedding(in_size, out_size, vb).map(Adapted::new)
}

/// An embedding with a row that stands for padding: `weight` of shape `[in, out]`.
///
/// # Errors
/// If the builder has no such tensor.
pub fn padded_embedding(
    in_size: usize,
    out_size: usize,
    padding: Option<u32>,
    vb: VarBuilder<'_>,
) -> Result<Adapted<PaddedEmbedding>> {
    let table = candle_nn::embedding(in_size, out_size, vb)?;
    Ok(Adapted::new(PaddedEmbedding::new(table, padding)))
}

/// A one-dimensional convolution: `weight` of shape `[out, in / groups, kernel]`, `bias` of shape `[out]`.
///
/// # Errors
/// If the builder has no such tensors.
pub fn conv1d(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    config: Conv1dConfig,
    vb: VarBuilder<'_>,
) -> Result<Adapted<Conv1d>> {
    candle_nn::conv1d(in_channels, out_channels, kernel_size, config, vb).map(Adapted::new)
}

/// A one-dimensional convolution without a bias.
///
/// # Errors
/// If the builder has no such tensor.
pub fn conv1d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    config: Conv1dConfig,
    vb: VarBuilder<'_>,
) -> Result<Adapted<Conv1d>> {
    candle_nn::conv1d_no_bias(in_channels, out_channels, kernel_size, config, vb).map(Adapted::new)
}

/// A two-dimensional convolution: `weight` of shape `[out, in / groups, kernel, kernel]`, `bias` of shape `[out]`.
///
/// # Errors
/// If the builder has no such tensors.
pub fn conv2d(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    config: Conv2dConfig,
    vb: VarBuilder<'_>,
) -> Result<Adapted<Conv2d>> {
    candle_nn::conv2d(in_channels, out_channels, kernel_size, config, vb).map(Adapted::new)
}

/// A two-dimensional convolution without a bias.
///
/// # Errors
/// If the builder has no such tensor.
pub fn conv2d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    config: Conv2dConfig,
    vb: VarBuilder<'_>,
) -> Result<Adapted<Conv2d>> {
    candle_nn::conv2d_no_bias(in_channels, out_channels, kernel_size, config, vb).map(Adapted::new)
}

/// A layer norm over the last dimension: `weight` and `bias` of shape `[size]`.
///
/// # Errors
/// If the builder has no such tensors.
pub fn layer_norm<C: Into<LayerNormConfig>>(
    size: usize,
    config: C,
    vb: VarBuilder<'_>,
) -> Result<Adapted<LayerNorm>> {
    candle_nn::layer_norm(size, config, vb).map(Adapted::new)
}

/// A layer norm without a bias.
///
/// # Errors
/// If the builder has no such tensor.
pub fn layer_norm_no_bias(size: usize, eps: f64, vb: VarBuilder<'_>) -> Result<Adapted<LayerNorm>> {
    candle_nn::layer_norm_no_bias(size, eps, vb).map(Adapted::new)
}

/// An RMS norm over the last dimension: `weight` of shape `[size]`.
///
/// # Errors
/// If the builder has no such tensor.
pub fn rms_norm(size: usize, eps: f64, vb: VarBuilder<'_>) -> Result<Adapted<RmsNorm>> {
    candle_nn::rms_norm(size, eps, vb).map(Adapted::new)
}
