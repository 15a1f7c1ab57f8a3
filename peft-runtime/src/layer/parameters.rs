//! What layers with a weight and possibly a bias have in common.

use candle_core::Tensor;

use super::ParameterMap;
use crate::error::Result;

/// The parameters by name, in PyTorch's order.
pub(super) fn weight_and_bias<'l>(
    weight: &'l Tensor,
    bias: Option<&'l Tensor>,
) -> Vec<(&'static str, &'l Tensor)> {
    let mut parameters = vec![("weight", weight)];
    parameters.extend(bias.map(|bias| ("bias", bias)));
    parameters
}

/// The new values of the weight and the bias.
pub(super) fn map_weight_and_bias(
    weight: &Tensor,
    bias: Option<&Tensor>,
    map: &mut ParameterMap<'_>,
) -> Result<(Tensor, Option<Tensor>)> {
    let weight = map("weight", weight)?;
    Ok((weight, bias.map(|bias| map("bias", bias)).transpose()?))
}
