//! FLUX's layers under the names of its own program, which fuses some of them.
//!
//! A fused layer has one A and one B. Parts with the same A share it; otherwise their factors stand in blocks: all A one below the other,
//! and B with zeros outside of its part's block, as sd-scripts writes files whose parts were trained apart. No number is rounded.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result as CandleResult, Tensor};

use super::exported::{ExportedLayer, MAGNITUDE};
use super::flux::{OwnName, own_name};
use super::update::{at, wrong};
use crate::error::Result;

const DOWN: &str = "lora_A.weight";
const UP: &str = "lora_B.weight";

/// Layers that FLUX has and other transformers of diffusers have not.
const MARKS: [&str; 3] = [".proj_mlp", ".proj_out", ".norm.linear"];

/// How many outputs the first layer of a feed-forward network of FLUX has for each input.
const WIDENING: usize = 4;

/// A layer as FLUX's own program has it.
pub(super) struct OwnLayer {
    path: String,
    rank: Option<usize>,
    scaling: Option<f64>,
    tensors: Vec<(String, Tensor)>,
}

impl OwnLayer {
    pub(super) fn exported(&self) -> ExportedLayer<'_> {
        ExportedLayer { path: &self.path, rank: self.rank, scaling: self.scaling, tensors: &self.tensors }
    }
}

/// A fused layer's parts, each by its place.
type Parts<'l> = BTreeMap<usize, &'l ExportedLayer<'l>>;

/// The layers under the own program's names; `None` if they are not those of FLUX under diffusers' names.
///
/// # Errors
/// If it may be another model, if a layer has no name there, or if one fused layer cannot hold its parts.
pub(super) fn own_layers(layers: &[ExportedLayer<'_>]) -> Result<Option<Vec<OwnLayer>>> {
    if !is_flux(layers)? {
        return Ok(None);
    }
    let mut own = Vec::new();
    let mut fused: BTreeMap<String, (&'static [&'static str], Parts<'_>)> = BTreeMap::new();
    for layer in layers {
        let (path, is_swapped) = match own_name(layer.path) {
            Some(OwnName::Same(path)) => (path, false),
            Some(OwnName::Swapped(path)) => (path, true),
            Some(OwnName::Part { module, parts, number }) => {
                fused.entry(module).or_insert((parts, Parts::new())).1.insert(number, layer);
                continue;
            }
            None => {
                return Err(wrong(layer.path, "cannot be written: FLUX's own program has no name for it"));
            }
        };
        let mut tensors = layer.tensors.to_vec();
        if is_swapped {
            swap_halves(layer, &mut tensors)?;
        }
        own.push(OwnLayer { path, rank: layer.rank, scaling: layer.scaling, tensors });
    }
    for (path, (names, parts)) in fused {
        own.push(joined(path, names, &parts)?);
    }
    Ok(Some(own))
}

/// Whether the layers are those of FLUX: blocks with one stream tell, those with two are SD3's as well.
fn is_flux(layers: &[ExportedLayer<'_>]) -> Result<bool> {
    let is_single = |layer: &ExportedLayer<'_>| {
        layer.path.starts_with("single_transformer_blocks.") && own_name(layer.path).is_some()
    };
    let is_marked =
        |layer: &ExportedLayer<'_>| is_single(layer) && MARKS.iter().any(|end| layer.path.ends_with(end));
    let all = layers.iter().all(|layer| own_name(layer.path).is_some());
    if layers.iter().any(is_marked) || all && layers.iter().any(is_single) {
        return Ok(true);
    }
    match layers.first().filter(|_| all) {
        Some(first) => {
            let reason = "cannot be written: layers like it are those of FLUX and of SD3, and kohya's programs have other names for each";
            Err(wrong(first.path, reason))
        }
        None => Ok(false),
    }
}

/// Puts the halves of the outputs into the other order.
fn swap_halves(layer: &ExportedLayer<'_>, tensors: &mut [(String, Tensor)]) -> Result<()> {
    for (end, tensor) in tensors.iter_mut().filter(|(end, _)| end != DOWN) {
        let is_lengths = is_lengths(end);
        if end != UP && !is_lengths {
            return Err(wrong(
                layer.path,
                "cannot be written: only LoRA has outputs that can be put in order",
            ));
        }
        let swapped = || -> CandleResult<Tensor> {
            let half = tensor.dim(0)? / 2;
            Tensor::cat(&[tensor.narrow(0, half, half)?, tensor.narrow(0, 0, half)?], 0)
        };
        *tensor = swapped().map_err(at(layer.path))?;
    }
    Ok(())
}

fn is_lengths(end: &str) -> bool {
    end.strip_suffix(".weight").unwrap_or(end) == MAGNITUDE
}

/// A part of a fused layer.
struct Part {
    a: Tensor,
    b: Tensor,
    lengths: Option<Tensor>,
}

/// One layer of its parts.
fn joined(path: String, names: &[&str], parts: &Parts<'_>) -> Result<OwnLayer> {
    let Some((_, first)) = parts.first_key_value() else { return Err(wrong(&path, "has no parts")) };
    let scale = first.scaling.unwrap_or(1.0);
    let mut factors: BTreeMap<usize, Part> = BTreeMap::new();
    for (number, layer) in parts {
        factors.insert(*number, part(layer, scale)?);
    }
    let has_lengths = factors.values().any(|part| part.lengths.is_some());
    if has_lengths && factors.len() < names.len() {
        let reason = format!(
            "cannot be written: `{path}` has DoRA's lengths for {} of its {} parts",
            factors.len(),
            names.len()
        );
        return Err(wrong(first.path, reason));
    }
    let (a, b) = assembled(names, &factors).map_err(at(first.path))?;
    let mut tensors = vec![(DOWN.to_owned(), a), (UP.to_owned(), b)];
    if has_lengths {
        let lengths: Vec<&Tensor> = factors.values().filter_map(|part| part.lengths.as_ref()).collect();
        let lengths = Tensor::cat(&lengths, 0).map_err(at(first.path))?;
        tensors.push((MAGNITUDE.to_owned(), lengths));
    }
    Ok(OwnLayer { path, rank: None, scaling: Some(scale), tensors })
}

/// The factors of a layer, with B for the scaling `scale`.
fn part(layer: &ExportedLayer<'_>, scale: f64) -> Result<Part> {
    let find = |end: &str| layer.tensors.iter().find(|(own, _)| own == end).map(|(_, tensor)| tensor.clone());
    let is_known = |end: &str| end == DOWN || end == UP || is_lengths(end);
    let (Some(a), Some(b)) = (find(DOWN), find(UP)) else {
        return Err(wrong(
            layer.path,
            "cannot be written: FLUX's own program has it fused, and only LoRA can be",
        ));
    };
    if let Some((end, _)) = layer.tensors.iter().find(|(end, _)| !is_known(end)) {
        let reason = "cannot be written: FLUX's own program has its layer fused with others";
        return Err(wrong(&format!("{}.{end}", layer.path), reason));
    }
    let lengths = layer.tensors.iter().find(|(end, _)| is_lengths(end)).map(|(_, lengths)| lengths.clone());
    let ratio = layer.scaling.unwrap_or(1.0) / scale;
    if ratio.to_bits() == 1f64.to_bits() {
        return Ok(Part { a, b, lengths });
    }
    let scaled = || -> CandleResult<Option<Tensor>> {
        let exact = (b.to_dtype(DType::F64)? * ratio)?;
        let scaled = exact.to_dtype(b.dtype())?;
        Ok(same(&scaled.to_dtype(DType::F64)?, &exact)?.then_some(scaled))
    };
    match scaled().map_err(at(layer.path))? {
        Some(b) if ratio.is_finite() => Ok(Part { a, b, lengths }),
        _ => {
            let reason = format!(
                "has the scaling {}, and another part of its fused layer has {scale}; one alpha cannot say both exactly",
                layer.scaling.unwrap_or(1.0)
            );
            Err(wrong(layer.path, reason))
        }
    }
}

/// Whether two tensors have the same shape, dtype and values.
fn same(one: &Tensor, other: &Tensor) -> CandleResult<bool> {
    if one.dims() != other.dims() || one.dtype() != other.dtype() {
        return Ok(false);
    }
    let differing: f32 = one.ne(other)?.to_dtype(DType::F32)?.sum_all()?.to_scalar()?;
    Ok(differing == 0.0)
}

/// A and B of the fused layer.
fn assembled(names: &[&str], parts: &BTreeMap<usize, Part>) -> CandleResult<(Tensor, Tensor)> {
    let all = || parts.values();
    let Some(first) = all().next() else { candle_core::bail!("a fused layer has no parts") };
    let is_wide = all().any(|part| part.a.dtype() != first.a.dtype() || part.b.dtype() != first.b.dtype());
    let dtype = |tensor: &Tensor| if is_wide { tensor.to_dtype(DType::F32) } else { Ok(tensor.clone()) };
    let mut shares = parts.len() == names.len();
    for part in all() {
        shares = shares && same(&part.a, &first.a)?;
    }
    if shares {
        let b = all().map(|part| dtype(&part.b)).collect::<CandleResult<Vec<_>>>()?;
        return Ok((dtype(&first.a)?, Tensor::cat(&b, 0)?));
    }
    let mut rank = 0;
    for part in all() {
        rank += part.a.dim(0)?;
    }
    let inputs = first.a.dim(1)?;
    let (mut downs, mut rows, mut before) = (Vec::new(), Vec::new(), 0);
    for (number, name) in names.iter().enumerate() {
        match parts.get(&number) {
            Some(part) => {
                let own = part.a.dim(0)?;
                downs.push(dtype(&part.a)?);
                rows.push(dtype(&part.b)?.pad_with_zeros(1, before, rank - before - own)?);
                before += own;
            }
            None => {
                let outputs = if name.ends_with("mlp") { WIDENING * inputs } else { inputs };
                rows.push(Tensor::zeros((outputs, rank), dtype(&first.b)?.dtype(), &Device::Cpu)?);
            }
        }
    }
    Ok((Tensor::cat(&downs, 0)?, Tensor::cat(&rows, 0)?))
}
