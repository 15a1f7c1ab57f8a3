//! Merging into quantized weights: dense for the length of a sum, and quantized again as they were.

use std::fmt;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Result as CandleResult, Tensor};

use super::delete::{unload, unload_layer};
use super::merge::{MergeOptions, MergedLayer, QuantizedWeights, merge_layer, names_to_merge, set_merged};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::module::{Injectable, leaves, leaves_mut};
use crate::path::ModulePath;

/// What quantizing merged weights again cost, layer by layer.
///
/// Its `Display` has a line for each layer, and one for all of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequantizeReport {
    /// The weights that were merged into and quantized again, in order.
    pub layers: Vec<RequantizedLayer>,
}

/// A merged weight that was quantized again.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RequantizedLayer {
    /// The layer.
    pub path: ModulePath,
    /// The type of its blocks, before and after.
    pub dtype: GgmlDType,
    /// The Frobenius norm of what quantizing changed, over that of the exact merged weight.
    pub relative_error: f64,
    error_squared: f64,
    norm_squared: f64,
}

impl RequantizeReport {
    /// The Frobenius norm of what quantizing changed in all layers, over that of all exact merged weights.
    pub fn relative_error(&self) -> f64 {
        let sum = |squares: fn(&RequantizedLayer) -> f64| self.layers.iter().map(squares).sum::<f64>();
        ratio(sum(|layer| layer.error_squared), sum(|layer| layer.norm_squared))
    }
}

impl fmt::Display for RequantizeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for RequantizedLayer { path, dtype, relative_error, .. } in &self.layers {
            writeln!(f, "{path}: {dtype:?}, relative error {relative_error:.2e}")?;
        }
        write!(
            f,
            "{} weights quantized again, relative error {:.2e}",
            self.layers.len(),
            self.relative_error()
        )
    }
}

/// The root of a ratio of squares; 0 where both are 0.
fn ratio(error_squared: f64, norm_squared: f64) -> f64 {
    if error_squared == 0.0 { 0.0 } else { (error_squared / norm_squared).sqrt() }
}

/// A dense weight as blocks of this type, and what that cost.
///
/// # Errors
/// If the rows are not whole blocks, or the device refuses.
pub(crate) fn requantize(
    path: &ModulePath,
    weight: &Tensor,
    dtype: GgmlDType,
) -> CandleResult<(QTensor, RequantizedLayer)> {
    // candle quantizes all of the memory behind a tensor, also what a view leaves out.
    let weight = weight.detach().to_dtype(candle_core::DType::F32)?.force_contiguous()?;
    let quantized = QTensor::quantize(&weight, dtype)?;
    let exact = weight.flatten_all()?.to_vec1::<f32>()?;
    let found = quantized.dequantize(weight.device())?.flatten_all()?.to_vec1::<f32>()?;
    let (mut error_squared, mut norm_squared) = (0.0, 0.0);
    for (exact, found) in exact.iter().copied().map(f64::from).zip(found.iter().copied().map(f64::from)) {
        error_squared += (exact - found).powi(2);
        norm_squared += exact.powi(2);
    }
    let relative_error = ratio(error_squared, norm_squared);
    let layer = RequantizedLayer { path: path.clone(), dtype, relative_error, error_squared, norm_squared };
    Ok((quantized, layer))
}

/// Merges and takes all adapters off; quantized weights are quantized again as they were.
pub(crate) fn merge_and_requantize<M: Injectable + ?Sized>(
    model: &mut M,
    options: &MergeOptions,
) -> Result<RequantizeReport> {
    let names = names_to_merge(model, options)?;
    let merge = |path: &ModulePath, layer: &dyn Layer, checks: bool| {
        merge_layer(path, layer, &names, checks, QuantizedWeights::Dense)
    };
    // Once over all layers to see that it can be done, keeping nothing, so that never two copies of all weights exist.
    for (path, layer) in leaves(model) {
        let Some(merged) = merge(&path, layer, options.checks_finite())? else { continue };
        if let Some(weight) = layer.quantized_weight() {
            requantize(&path, &merged.parameters.weight, weight.dtype()).map_err(Error::on_layer(&path))?;
        }
    }
    let mut report = RequantizeReport::default();
    for (path, layer) in leaves_mut(model) {
        if let Some(merged) = merge(&path, &*layer, false)? {
            report.layers.extend(replace(&path, layer, merged)?);
        }
        unload_layer(layer)?;
    }
    unload(model)?;
    Ok(report)
}

fn replace(
    path: &ModulePath,
    layer: &mut dyn Layer,
    merged: MergedLayer,
) -> Result<Option<RequantizedLayer>> {
    let Some(dtype) = layer.quantized_weight().map(|weight| weight.dtype()) else {
        set_merged(layer, merged)?;
        return Ok(None);
    };
    let (weight, cost) = requantize(path, &merged.parameters.weight, dtype).map_err(Error::on_layer(path))?;
    set_merged(layer, merged)?;
    layer.set_quantized_weight(Arc::new(weight)).map_err(Error::on_layer(path))?;
    Ok(Some(cost))
}
