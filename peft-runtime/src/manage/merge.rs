//! Merging adapters into the weights, and taking them out again bit for bit.

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{Result as CandleResult, Tensor};

use super::delete::{unload, unload_layer};
use super::{active_adapters, check_known, for_each_layer};
use crate::adapter::{LinearParameters, MergeError, Site};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::module::{Injectable, leaves, leaves_mut};
use crate::path::ModulePath;

/// What to merge, and how carefully.
///
/// ```
/// use peft_runtime::MergeOptions;
///
/// let options = MergeOptions::adapters(["chat", "code"]).check_finite(true);
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MergeOptions {
    adapters: Option<Vec<String>>,
    check_finite: bool,
}

impl MergeOptions {
    /// Merges the active adapters.
    pub fn active() -> Self {
        Self::default()
    }

    /// Merges these adapters, in this order.
    pub fn adapters<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self { adapters: Some(names.into_iter().map(Into::into).collect()), check_finite: false }
    }

    /// Refuses to merge if a merged parameter would hold NaN or infinity (PEFT's `safe_merge`).
    #[must_use]
    pub fn check_finite(mut self, check: bool) -> Self {
        self.check_finite = check;
        self
    }

    /// Whether merged parameters are checked.
    pub(super) fn checks_finite(&self) -> bool {
        self.check_finite
    }
}

/// One layer's parameters with adapters merged in.
pub(super) struct MergedLayer {
    /// All adapters that are in it, in order.
    names: Vec<String>,
    pub(super) parameters: LinearParameters,
}

/// What becomes of layers whose weight is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QuantizedWeights {
    /// They are refused.
    Refused,
    /// The merged weight is dense.
    Dense,
}

/// Merges adapters; those already merged stay merged. If merging fails, nothing more is merged than before.
pub(crate) fn merge_adapters<M: Injectable + ?Sized>(model: &mut M, options: &MergeOptions) -> Result<()> {
    let names = names_to_merge(model, options)?;
    let merge = |(path, layer): (ModulePath, &dyn Layer)| {
        merge_layer(&path, layer, &names, options.check_finite, QuantizedWeights::Refused)
    };
    let merged = leaves(model).into_iter().map(merge).collect::<Result<Vec<_>>>()?;
    for ((_, layer), merged) in leaves_mut(model).into_iter().zip(merged) {
        if let Some(merged) = merged {
            set_merged(layer, merged)?;
        }
    }
    Ok(())
}

pub(super) fn set_merged(layer: &mut dyn Layer, merged: MergedLayer) -> Result<()> {
    let MergedLayer { names, parameters } = merged;
    let weight = layer.weight_name();
    layer.set_merged(Some(&mut |name, own| {
        Ok(match (name, &parameters.bias) {
            (name, _) if name == weight => parameters.weight.clone(),
            ("bias", Some(bias)) => bias.clone(),
            _ => own.clone(),
        })
    }))?;
    if let Some(stack) = layer.stack_mut() {
        stack.set_merged(names);
    }
    Ok(())
}

/// Puts the layers' own weights back into use, with their original bits.
pub(crate) fn unmerge_adapters<M: Injectable + ?Sized>(model: &mut M) -> Result<()> {
    let mut result = Ok(());
    for_each_layer(model, |layer| {
        if let Err(error) = layer.unmerge() {
            result = Err(error);
        }
    });
    result
}

/// Merges adapters and removes them all; the original weights are freed layer by layer.
pub(crate) fn merge_and_unload<M: Injectable + ?Sized>(model: &mut M, options: &MergeOptions) -> Result<()> {
    let names = names_to_merge(model, options)?;
    // One pass over all layers checks that merging is possible and keeps nothing, so that two copies of all weights
    // never exist.
    for (path, layer) in leaves(model) {
        merge_layer(&path, layer, &names, options.check_finite, QuantizedWeights::Refused)?;
    }
    for (path, layer) in leaves_mut(model) {
        if let Some(merged) = merge_layer(&path, layer, &names, false, QuantizedWeights::Refused)? {
            set_merged(layer, merged)?;
        }
        unload_layer(layer)?;
    }
    unload(model)
}

pub(super) fn names_to_merge<M: Injectable + ?Sized>(
    model: &M,
    options: &MergeOptions,
) -> Result<Vec<String>> {
    match &options.adapters {
        Some(names) => {
            check_known(&leaves(model), names)?;
            Ok(names.clone())
        }
        None => Ok(active_adapters(model)),
    }
}

/// The layer's parameters with the adapters already merged and those of `names` that the layer has; `None` if none is
/// new.
pub(super) fn merge_layer(
    path: &ModulePath,
    layer: &dyn Layer,
    names: &[String],
    check_finite: bool,
    quantized: QuantizedWeights,
) -> Result<Option<MergedLayer>> {
    let Some(stack) = layer.stack() else { return Ok(None) };
    let mut all = stack.merged().to_vec();
    for name in names {
        let has_adapter = stack.slot(name).is_some_and(|slot| slot.adapter().is_some());
        if has_adapter && !stack.merged().contains(name) {
            all.push(name.clone());
        }
    }
    if all.len() == stack.merged().len() {
        return Ok(None);
    }
    let held = layer.parameters();
    let find =
        |wanted: &str| held.iter().find(|(name, _)| *name == wanted).map(|(_, tensor)| tensor.detach());
    let weight = match (find(layer.weight_name()), layer.quantized_weight()) {
        (Some(weight), _) => weight,
        (None, Some(_)) if quantized == QuantizedWeights::Dense => {
            layer.dense_weight().map_err(Error::on_layer(path))?
        }
        (None, weight) => return Err(no_dense_weight(path, layer, weight, &all)),
    };
    let (dtype, device) = layer.dtype_and_device();
    let dense = || -> CandleResult<Tensor> { layer.dense_weight() };
    let (kind, bias) = (layer.kind(), find("bias"));
    let site = Site {
        path,
        kind,
        geometry: stack.geometry(),
        dtype,
        device: &device,
        bias: bias.clone(),
        autocasts: true,
        weight: &dense,
    };
    let own = LinearParameters { weight, bias };
    let mut parameters = own.widened().map_err(Error::on_layer(path))?;
    for name in &all {
        let Some(adapter) = stack.slot(name).and_then(|slot| slot.adapter()) else { continue };
        parameters = adapter.merge(&site, parameters).map_err(|error| merge_error(error, name, path))?;
        if check_finite {
            check_parameters(&parameters.rounded_as(&own).map_err(Error::on_layer(path))?, name, path)?;
        }
    }
    let parameters = parameters.rounded_as(&own).map_err(Error::on_layer(path))?;
    Ok(Some(MergedLayer { names: all, parameters }))
}

/// Why there is no weight to merge into.
fn no_dense_weight(
    path: &ModulePath,
    layer: &dyn Layer,
    quantized: Option<&Arc<QTensor>>,
    adapters: &[String],
) -> Error {
    let adapter = adapters.last().cloned().unwrap_or_default();
    let reason = match quantized {
        Some(weight) => format!(
            "its weight is quantized ({:?}); make the layer dense first, or `merge_and_requantize`",
            weight.dtype()
        ),
        None => format!("a {} has no dense weight to merge into", layer.kind()),
    };
    Error::CannotMerge { adapter, path: path.clone(), reason }
}

/// Why the adapter cannot be merged into the layer at `path`.
pub(crate) fn merge_error(error: MergeError, adapter: &str, path: &ModulePath) -> Error {
    match error {
        MergeError::Impossible(reason) => {
            Error::CannotMerge { adapter: adapter.to_owned(), path: path.clone(), reason }
        }
        MergeError::Candle(source) => Error::on_layer(path)(source),
    }
}

fn check_parameters(parameters: &LinearParameters, adapter: &str, path: &ModulePath) -> Result<()> {
    let named = [("weight", Some(&parameters.weight)), ("bias", parameters.bias.as_ref())];
    for (name, tensor) in named {
        let Some(tensor) = tensor else { continue };
        if !is_finite(tensor).map_err(Error::on_layer(path))? {
            let (adapter, parameter) = (adapter.to_owned(), name.to_owned());
            return Err(Error::NotFinite { adapter, path: path.clone(), parameter });
        }
    }
    Ok(())
}

/// Whether no element is NaN or infinite: zero times those is NaN, and NaN survives a sum.
pub(crate) fn is_finite(tensor: &Tensor) -> CandleResult<bool> {
    let zeros = (tensor.to_dtype(candle_core::DType::F32)?.contiguous()? * 0.0)?;
    Ok(zeros.sum_all()?.to_scalar::<f32>()? == 0.0)
}
