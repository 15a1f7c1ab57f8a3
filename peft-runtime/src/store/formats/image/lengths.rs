//! DoRA's lengths in PEFT's form, which every layer of an adapter has or none.

use candle_core::{DType, Result as CandleResult, Tensor};

use super::delta::Delta;
use super::layer::{Axis, LayerUpdate};
use super::update::{at, wrong};
use crate::error::Result;
use crate::store::formats::Base;

/// An update without lengths of inputs: what they do to the weight is part of the update itself.
pub(super) fn without_inputs(path: &str, layer: LayerUpdate, base: Option<&Base>) -> Result<LayerUpdate> {
    let Some(Axis::Inputs(lengths)) = &layer.lengths else { return Ok(layer) };
    let weight = weight_of(path, &layer, base)?;
    let changed = || -> CandleResult<Tensor> {
        let merged = (&weight + layer.delta.matrix()?)?;
        let (outputs, columns) = merged.dims2()?;
        let inputs = lengths.elem_count();
        let merged = merged.reshape((outputs, inputs, columns / inputs.max(1)))?;
        let norms = merged.sqr()?.sum_keepdim((0, 2))?.sqrt()?;
        let lengths = lengths.to_dtype(DType::F64)?.reshape(norms.shape())?;
        let scaled = merged.broadcast_mul(&(lengths / norms)?)?;
        (scaled.reshape((outputs, columns))? - &weight)?.to_dtype(DType::F32)
    };
    let delta = Delta::Dense(changed().map_err(at(path))?);
    Ok(LayerUpdate { delta, lengths: None, ..layer })
}

/// One length for each output, `[out]`; where the file has none, those of the weight with its update, which change nothing.
pub(super) fn of_outputs(path: &str, layer: &LayerUpdate, base: Option<&Base>) -> Result<Tensor> {
    let own = match &layer.lengths {
        Some(Axis::Outputs(own)) => Some(own),
        _ => None,
    };
    let complete = |own: &Tensor| -> CandleResult<bool> {
        let values: Vec<f64> = own.to_dtype(DType::F64)?.to_vec1()?;
        Ok(!values.iter().any(|value| value.is_nan()))
    };
    if let Some(own) = own
        && complete(own).map_err(at(path))?
    {
        return Ok(own.clone());
    }
    let weight = weight_of(path, layer, base)?;
    let filled = || -> CandleResult<Tensor> {
        let norms = (&weight + layer.delta.matrix()?)?.sqr()?.sum(1)?.sqrt()?;
        let norms = norms.to_dtype(DType::F32)?;
        match own {
            Some(own) => {
                let own = own.to_dtype(DType::F32)?;
                own.eq(&own)?.where_cond(&own, &norms)
            }
            None => Ok(norms),
        }
    };
    filled().map_err(at(path))
}

/// The weight of a layer as a matrix, in f64.
fn weight_of(path: &str, layer: &LayerUpdate, base: Option<&Base>) -> Result<Tensor> {
    let Some(base) = base else {
        return Err(wrong(
            &layer.key,
            "has lengths that only together with the base model's weight say what they do",
        ));
    };
    let weight = base.tensor(&format!("{path}.weight"))?;
    let matrix = weight.to_dtype(DType::F64).and_then(|weight| weight.flatten_from(1));
    matrix.map_err(at(path))
}
