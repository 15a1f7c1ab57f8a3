//! The weight and bias of one layer of a base model with adapters merged in.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result as CandleResult, Tensor, bail};

use super::placed_tensors::PlacedLayer;
use super::weighted_adapter::WeightedAdapter;
use crate::adapter::{Adapter, Built, Geometry, LinearParameters, Site};
use crate::error::{Error, Result};
use crate::manage::merge_error;
use crate::schema::LayerKind;
use crate::store::model_facts::ModelFacts;

/// The parameters of a module with all of `layers` merged in order.
pub(super) fn merge(
    layers: &[(&WeightedAdapter, &PlacedLayer)],
    mut parameters: LinearParameters,
    facts: ModelFacts<'_>,
) -> Result<LinearParameters> {
    let mut rest = layers.to_vec();
    while let Some((part, first)) = rest.first().copied() {
        let (group, others): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|(_, layer)| layer.rows == first.rows);
        rest = others;
        parameters = match &first.rows {
            None => merge_whole(&group, parameters, Lies::AsTheModelSays(facts))?,
            Some(rows) => {
                let transposed = part.is_fused_transposed(first, (parameters.weight.dims(), rows), facts)?;
                let axis = usize::from(transposed);
                let (weight, bias) = (&parameters.weight, &parameters.bias);
                let own = cut(weight, bias.as_ref(), axis, rows).map_err(Error::on_layer(&first.path))?;
                let merged = merge_whole(&group, own, Lies::Transposed(transposed))?;
                replace_rows(weight, bias.as_ref(), axis, rows, &merged)
                    .map_err(Error::on_layer(&first.path))?
            }
        };
    }
    Ok(parameters)
}

/// The rows of a fused layer that belong to one layer.
fn cut(
    weight: &Tensor,
    bias: Option<&Tensor>,
    axis: usize,
    rows: &Range<usize>,
) -> CandleResult<LinearParameters> {
    let narrow = |tensor: &Tensor, axis: usize| tensor.narrow(axis, rows.start, rows.len())?.contiguous();
    Ok(LinearParameters {
        weight: narrow(weight, axis)?,
        bias: bias.map(|bias| narrow(bias, 0)).transpose()?,
    })
}

/// The fused layer with these rows.
fn replace_rows(
    weight: &Tensor,
    bias: Option<&Tensor>,
    axis: usize,
    rows: &Range<usize>,
    merged: &LinearParameters,
) -> CandleResult<LinearParameters> {
    let bias = match (bias, &merged.bias) {
        (Some(bias), Some(merged)) => Some(with_rows(bias, 0, rows, merged)?),
        (bias, _) => bias.cloned(),
    };
    Ok(LinearParameters { weight: with_rows(weight, axis, rows, &merged.weight)?, bias })
}

/// `tensor` with a range along one dimension replaced by `value`.
pub(super) fn with_rows(
    tensor: &Tensor,
    axis: usize,
    rows: &Range<usize>,
    value: &Tensor,
) -> CandleResult<Tensor> {
    let length = tensor.dim(axis)?;
    if rows.end > length || value.dim(axis)? != rows.len() {
        bail!("rows {rows:?} of {length} cannot take values of shape {:?}", value.dims())
    }
    let mut pieces = Vec::new();
    if rows.start > 0 {
        pieces.push(tensor.narrow(axis, 0, rows.start)?);
    }
    pieces.push(value.clone());
    if rows.end < length {
        pieces.push(tensor.narrow(axis, rows.end, length - rows.end)?);
    }
    Tensor::cat(&pieces, axis)
}

/// How a weight lies.
#[derive(Clone, Copy)]
enum Lies<'m> {
    /// As its shape and the base model say.
    AsTheModelSays(ModelFacts<'m>),
    /// As the fused weight does that it is a part of.
    Transposed(bool),
}

/// Merges layers that all adapt the same whole weight. First every adapter takes its part out of the weight, as when
/// it is loaded; then each is merged.
fn merge_whole(
    layers: &[(&WeightedAdapter, &PlacedLayer)],
    parameters: LinearParameters,
    lies: Lies<'_>,
) -> Result<LinearParameters> {
    let LinearParameters { weight: mut own, bias } = parameters;
    let mut made: Vec<(&WeightedAdapter, &PlacedLayer, Geometry, Arc<dyn Adapter>)> = Vec::new();
    for &(part, layer) in layers {
        let geometry = match lies {
            Lies::AsTheModelSays(facts) => part.geometry(layer, own.dims(), facts)?,
            Lies::Transposed(transposed) => part.geometry_of_part(layer, own.dims(), transposed)?,
        };
        if geometry.weight_shape() != own.dims() {
            let reason = format!(
                "its tensors are for a weight of shape {:?}, and the base model's is {:?}",
                geometry.weight_shape(),
                own.dims()
            );
            return Err(part.cannot_merge(layer, reason));
        }
        let read = || -> CandleResult<Tensor> { Ok(own.clone()) };
        let Built { adapter, weight } = part.build(layer, &site(layer, &geometry, &own, &bias, &read))?;
        own = weight.unwrap_or(own);
        made.push((part, layer, geometry, adapter));
    }
    let read = || -> CandleResult<Tensor> { Ok(own.clone()) };
    let parameters = LinearParameters { weight: own.clone(), bias: bias.clone() };
    let mut merged = parameters.widened()?;
    for (part, layer, geometry, adapter) in &made {
        let site = site(layer, geometry, &own, &bias, &read);
        merged =
            adapter.merge(&site, merged).map_err(|error| merge_error(error, part.name(), &layer.path))?;
    }
    Ok(merged.rounded_as(&parameters)?)
}

fn site<'s>(
    layer: &'s PlacedLayer,
    geometry: &'s Geometry,
    weight: &'s Tensor,
    bias: &Option<Tensor>,
    read: &'s dyn Fn() -> CandleResult<Tensor>,
) -> Site<'s> {
    let kind = LayerKind::new("weight", geometry.family());
    let (dtype, device) = (weight.dtype(), weight.device());
    Site {
        path: &layer.path,
        kind,
        geometry,
        dtype,
        device,
        bias: bias.clone(),
        autocasts: true,
        weight: read,
    }
}
