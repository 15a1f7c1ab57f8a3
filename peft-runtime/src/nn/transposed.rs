//! Constructors of the linear layer that stores its weight transposed.

use candle_core::Result;
use candle_nn::{Init, VarBuilder};

use crate::layer::{Adapted, TransposedLinear};

/// The distribution of GPT-2's initial weights.
const WEIGHT_INIT: Init = Init::Randn { mean: 0.0, stdev: 0.02 };

/// A linear layer stored as GPT-2's `Conv1D`: `weight` of shape `[in, out]`, `bias` of shape `[out]`.
///
/// # Errors
/// If the builder has no such tensors.
pub fn transposed_linear(
    in_dim: usize,
    out_dim: usize,
    vb: VarBuilder<'_>,
) -> Result<Adapted<TransposedLinear>> {
    let weight = vb.get_with_hints((in_dim, out_dim), "weight", WEIGHT_INIT)?;
    let bias = vb.get_with_hints(out_dim, "bias", Init::Const(0.0))?;
    Ok(Adapted::new(TransposedLinear::new(weight, Some(bias))))
}

/// A linear layer stored as GPT-2's `Conv1D`, without a bias.
///
/// # Errors
/// If the builder has no such tensor.
pub fn transposed_linear_no_bias(
    in_dim: usize,
    out_dim: usize,
    vb: VarBuilder<'_>,
) -> Result<Adapted<TransposedLinear>> {
    let weight = vb.get_with_hints((in_dim, out_dim), "weight", WEIGHT_INIT)?;
    Ok(Adapted::new(TransposedLinear::new(weight, None)))
}
