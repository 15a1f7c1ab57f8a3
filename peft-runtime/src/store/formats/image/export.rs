//! Adapters in the forms that programs for image models read.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use serde_json::{Map, Value};

use super::delta::as_number;
use super::exported::{ExportedLayer, MAGNITUDE};
use super::flux_written::{self, OwnLayer};
use super::metadata;
use crate::error::{AdapterFileError, Error, Result};

/// The ends of PEFT's keys that sd-scripts and LyCORIS have under other names.
const RENAMED: [(&str, &str); 2] =
    [("lora_A.weight", "lora_down.weight"), ("lora_B.weight", "lora_up.weight")];

fn cannot_hold(format: &str, path: &str, end: &str) -> Error {
    let reason = format!("cannot be written: files of {format} have nothing for it");
    AdapterFileError::Key { key: format!("{path}.{end}"), reason }.into()
}

/// The tensors of a file of sd-scripts or LyCORIS, whose names begin with `prefix`. FLUX's modules get the names of its own
/// program, as these programs have them.
///
/// # Errors
/// If a tensor has no name there, two modules would have one name, or the scaling of a layer cannot be said.
pub(in crate::store) fn kohya(
    layers: &[ExportedLayer<'_>],
    prefix: &str,
) -> Result<BTreeMap<String, Tensor>> {
    let of_flux = flux_written::own_layers(layers)?;
    let own: Vec<ExportedLayer<'_>> = of_flux.iter().flatten().map(OwnLayer::exported).collect();
    let layers = if of_flux.is_some() { own.as_slice() } else { layers };
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for layer in layers {
        let module = format!("{prefix}{}", layer.path.replace('.', "_"));
        if let Some(other) = names.insert(module.clone(), layer.path) {
            let candidates = vec![other.to_owned(), layer.path.to_owned()];
            return Err(AdapterFileError::Ambiguous { key: module, candidates }.into());
        }
        for (end, tensor) in layer.tensors {
            let (end, tensor) = renamed(layer, end, tensor)?;
            tensors.insert(format!("{module}.{end}"), tensor);
        }
        if let Some(alpha) = alpha(layer)? {
            tensors.insert(format!("{module}.alpha"), alpha);
        }
    }
    Ok(tensors)
}

/// The name and the form of a tensor in files of sd-scripts.
fn renamed(layer: &ExportedLayer<'_>, end: &str, tensor: &Tensor) -> Result<(String, Tensor)> {
    let is_same = ["hada_", "lokr_"].iter().any(|start| end.starts_with(start));
    if let Some((_, name)) = RENAMED.iter().find(|(own, _)| *own == end) {
        return Ok(((*name).to_owned(), tensor.clone()));
    }
    if is_same {
        return Ok((end.to_owned(), tensor.clone()));
    }
    if end.strip_suffix(".weight").unwrap_or(end) != MAGNITUDE {
        return Err(cannot_hold("kohya's sd-scripts", layer.path, end));
    }
    // One length for each output, with as many dimensions as the weight.
    let down = layer.tensors.iter().find(|(name, _)| name == RENAMED[0].0);
    let dimensions = down.map_or(2, |(_, down)| down.rank());
    let mut shape = vec![tensor.elem_count()];
    shape.resize(dimensions, 1);
    Ok(("dora_scale".to_owned(), tensor.reshape(shape)?))
}

/// The number whose quotient by the rank is the scaling; none where LyCORIS takes none.
fn alpha(layer: &ExportedLayer<'_>) -> Result<Option<Tensor>> {
    let wrong =
        |reason: String| Error::from(AdapterFileError::Key { key: format!("{}.alpha", layer.path), reason });
    let has = |end: &str| layer.tensors.iter().any(|(own, _)| own == end);
    let Some(scaling) = layer.scaling else {
        return Err(wrong("cannot be written: its method has no scaling".to_owned()));
    };
    if has("lokr_w1") && has("lokr_w2") {
        if scaling == 1.0 {
            return Ok(None);
        }
        let reason =
            format!("cannot be written: the scaling is {scaling}, and of two whole matrices it is 1");
        return Err(wrong(reason));
    }
    let factor_rank = |end: &str| layer.tensors.iter().find(|(own, _)| own == end)?.1.dims().first().copied();
    let of_factors =
        ["lora_A.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"].into_iter().find_map(factor_rank);
    let rank = as_number(of_factors.or(layer.rank).unwrap_or(1));
    let alpha = scaling * rank;
    #[expect(clippy::cast_possible_truncation, reason = "the other form is taken where it is not exact")]
    let short = alpha as f32;
    let tensor = || -> CandleResult<Tensor> {
        match f64::from(short) / rank == scaling {
            true => Tensor::new(short, &Device::Cpu),
            false => Tensor::new(alpha, &Device::Cpu)?.to_dtype(DType::F64),
        }
    };
    Ok(Some(tensor()?))
}

/// The tensors of a file of diffusers, whose names begin with `prefix`, and the field of its header.
///
/// # Errors
/// If the config is not one of LoRA, or a tensor has no name there.
pub(in crate::store) fn diffusers(
    layers: &[ExportedLayer<'_>],
    prefix: &str,
    config: &str,
) -> Result<(BTreeMap<String, Tensor>, (String, String))> {
    const ENDS: [&str; 5] =
        ["lora_A.weight", "lora_B.weight", "lora_B.bias", MAGNITUDE, "lora_magnitude_vector.weight"];
    let mut tensors = BTreeMap::new();
    for layer in layers {
        for (end, tensor) in layer.tensors {
            if !ENDS.contains(&end.as_str()) {
                return Err(cannot_hold("diffusers", layer.path, end));
            }
            tensors.insert(format!("{prefix}{}.{end}", layer.path), tensor.clone());
        }
    }
    let fields: Map<String, Value> = serde_json::from_str(config)?;
    let fields = fields.into_iter().map(|(field, value)| (format!("{prefix}{field}"), value)).collect();
    let text = serde_json::to_string_pretty(&Value::Object(fields))?;
    Ok((tensors, (metadata::FIELD.to_owned(), text)))
}
