//! What a file does to one layer of the base model, whichever modules of the file that comes from.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Tensor};

use super::blocks;
use super::delta::{Delta, LowRank, as_number};
use super::place::{Piece, Place};
use super::update::{Lengths, Update, at, wrong};
use crate::error::Result;

/// The update of one layer.
#[derive(Debug)]
pub(super) struct LayerUpdate {
    /// A key of the file, for messages.
    pub(super) key: String,
    /// The shape of the layer's weight.
    pub(super) weight: Vec<usize>,
    pub(super) delta: Delta,
    pub(super) lengths: Option<Axis>,
}

/// DoRA's lengths.
#[derive(Clone, Debug)]
pub(super) enum Axis {
    /// One for each output, `[out]`; NaN where the file has none.
    Outputs(Tensor),
    /// One for each input, `[in]`.
    Inputs(Tensor),
}

/// A part of the update of a layer, with the outputs that it is for if those are not all.
struct Pending {
    rows: Option<Range<usize>>,
    key: String,
    delta: Delta,
    lengths: Option<Axis>,
}

/// Updates as they come in, by the layer's path.
#[derive(Default)]
pub(super) struct Layers {
    pending: BTreeMap<String, (Vec<usize>, Vec<Pending>)>,
}

impl Layers {
    /// Puts an update to the layers at its place, whose weights have the shapes that `weight` tells.
    pub(super) fn add(
        &mut self,
        place: &Place,
        update: &Update,
        delta: &Delta,
        weight: &dyn Fn(&str) -> Option<Vec<usize>>,
    ) -> Result<()> {
        let key = update.key.as_str();
        let Some(sides) = delta.sides() else {
            return Err(wrong(key, "and its like are no factors of a matrix"));
        };
        let lengths = update.lengths.as_ref().map(|lengths| axis(lengths, sides)).transpose()?;
        if matches!(lengths, Some(Axis::Inputs(_)))
            && (place.pieces.len() > 1 || place.pieces.iter().any(|piece| piece.rows.is_some()))
        {
            return Err(wrong(
                key,
                "has lengths for each input of a fused layer, which the base model has in parts",
            ));
        }
        check_outputs(place, key, sides, weight)?;
        let columns = match delta {
            Delta::LowRank(terms) => blocks::columns(terms, place).map_err(at(key))?,
            _ => None,
        };
        for (number, piece) in place.pieces.iter().enumerate() {
            let own_columns = columns.as_ref().and_then(|columns| columns.get(number));
            if own_columns.is_some_and(|own| own.is_empty() && lengths.is_none()) {
                continue;
            }
            let shape = weight(&piece.module)
                .ok_or_else(|| wrong(key, format!("is for `{}`, which has no weight", piece.module)))?;
            check_sides(piece, key, sides, &shape)?;
            let lengths = match &lengths {
                Some(Axis::Outputs(lengths)) => Some(piece.take(lengths, 0).map(Axis::Outputs)?),
                other => other.clone(),
            };
            let mut delta = delta.take(piece).map_err(at(&piece.module))?;
            if let (Delta::LowRank(terms), Some(own)) = (&mut delta, own_columns)
                && !own.is_empty()
            {
                *terms = blocks::of_columns(terms, own).map_err(at(&piece.module))?;
            }
            let pending = Pending { rows: piece.rows.clone(), key: key.to_owned(), delta, lengths };
            self.pending.entry(piece.module.clone()).or_insert((shape, Vec::new())).1.push(pending);
        }
        Ok(())
    }

    /// The layers with their updates.
    pub(super) fn finish(self) -> Result<BTreeMap<String, LayerUpdate>> {
        let mut layers = BTreeMap::new();
        for (path, (weight, mut pending)) in self.pending {
            let layer = match pending.as_slice() {
                [one] if one.rows.is_none() => {
                    let Pending { key, delta, lengths, .. } = pending.remove(0);
                    LayerUpdate { key, weight, delta, lengths }
                }
                _ => fused(&weight, &pending)?,
            };
            layers.insert(path, layer);
        }
        Ok(layers)
    }
}

/// An error if the parts of a fused update are not as many outputs as it has.
fn check_outputs(
    place: &Place,
    key: &str,
    (outputs, _): (usize, usize),
    weight: &dyn Fn(&str) -> Option<Vec<usize>>,
) -> Result<()> {
    let taken: Vec<usize> = place.pieces.iter().filter_map(Piece::outputs).collect();
    if taken.is_empty() || taken.iter().sum::<usize>() == outputs {
        return Ok(());
    }
    let parts: Vec<String> = place
        .pieces
        .iter()
        .map(|piece| format!("`{}` {:?}", piece.module, weight(&piece.module).unwrap_or_default()))
        .collect();
    Err(wrong(
        key,
        format!("makes an update with {outputs} outputs, and the base model has {}", parts.join(", ")),
    ))
}

/// An error if an update does not fit a weight.
fn check_sides(piece: &Piece, key: &str, (outputs, inputs): (usize, usize), shape: &[usize]) -> Result<()> {
    let own = piece.outputs().unwrap_or(outputs);
    let expected = piece.rows.as_ref().map_or(shape.first().copied().unwrap_or_default(), Range::len);
    let columns: usize = shape.get(1..).unwrap_or_default().iter().product();
    if own == expected && inputs == columns {
        return Ok(());
    }
    let part = match &piece.rows {
        Some(rows) => {
            format!("rows {} to {} of the weight of `{}` {shape:?}", rows.start, rows.end, piece.module)
        }
        None => format!("the weight of `{}` {shape:?}", piece.module),
    };
    Err(wrong(key, format!("makes an update of [{own}, {inputs}], which does not fit {part}")))
}

/// Which side of the weight DoRA's lengths go by.
fn axis(lengths: &Lengths, (outputs, inputs): (usize, usize)) -> Result<Axis> {
    let Lengths { key, tensor, is_scale } = lengths;
    let dims = tensor.dims();
    let (count, flat) = (tensor.elem_count(), tensor.flatten_all()?);
    let by_inputs = *is_scale && dims.len() > 1 && dims.first() == Some(&1) && dims.get(1) == Some(&count);
    if by_inputs && count > 1 && inputs.is_multiple_of(count) {
        return Ok(Axis::Inputs(flat));
    }
    let vector = dims.iter().filter(|size| **size != 1).count() <= 1;
    if count == outputs && vector {
        return Ok(Axis::Outputs(flat));
    }
    let reason = format!(
        "has the shape {dims:?}; it must have one length for each of {outputs} outputs, or of the inputs"
    );
    Err(wrong(key, reason))
}

/// One update out of those of parts of a layer's outputs: the factors A one below the other, those of B in blocks.
fn fused(weight: &[usize], pending: &[Pending]) -> Result<LayerUpdate> {
    let outputs = weight.first().copied().unwrap_or_default();
    let key = pending.first().map(|first| first.key.clone()).unwrap_or_default();
    let mut blocks: Vec<(Range<usize>, LowRank)> = Vec::new();
    let mut has_lengths = false;
    let mut lengths: Vec<(Range<usize>, Tensor)> = Vec::new();
    for part in pending {
        let rows = part.rows.clone().unwrap_or(0..outputs);
        if let Some((_, other)) = blocks
            .iter()
            .zip(pending)
            .find(|((known, _), _)| known.start < rows.end && rows.start < known.end)
        {
            return Err(wrong(&part.key, format!("is for outputs that `{}` is for as well", other.key)));
        }
        let terms = part.delta.low_rank()?;
        if terms.bias.is_some() {
            return Err(wrong(
                &part.key,
                "has a bias on B, and the base model has its layer fused with others",
            ));
        }
        if let Some(Axis::Outputs(own)) = &part.lengths {
            has_lengths = true;
            lengths.push((rows.clone(), own.to_dtype(DType::F32)?));
        }
        blocks.push((rows, terms));
    }
    let delta = Delta::LowRank(in_blocks(outputs, &blocks)?);
    let lengths = if has_lengths { Some(Axis::Outputs(in_rows(outputs, &lengths)?)) } else { None };
    Ok(LayerUpdate { key, weight: weight.to_vec(), delta, lengths })
}

/// The lengths of all outputs, NaN where there are none.
fn in_rows(outputs: usize, parts: &[(Range<usize>, Tensor)]) -> Result<Tensor> {
    let mut values = vec![f32::NAN; outputs];
    for (rows, part) in parts {
        let part: Vec<f32> = part.to_vec1()?;
        if let Some(own) = values.get_mut(rows.clone()).filter(|own| own.len() == part.len()) {
            own.copy_from_slice(&part);
        }
    }
    Ok(Tensor::new(values, &candle_core::Device::Cpu)?)
}

fn in_blocks(outputs: usize, blocks: &[(Range<usize>, LowRank)]) -> Result<LowRank> {
    let rank: usize = blocks.iter().map(|(_, terms)| terms.rank()).sum();
    let scale = blocks.first().map_or(1.0, |(_, terms)| terms.scale());
    let one_scale = blocks.iter().all(|(_, terms)| terms.scale() == scale);
    let same_dtype = blocks.iter().all(|(_, terms)| terms.a.dtype() == blocks[0].1.a.dtype());
    let mut columns = Vec::new();
    let mut downs = Vec::new();
    for (rows, terms) in blocks {
        let (a, mut b) = if same_dtype {
            (terms.a.clone(), terms.b.clone())
        } else {
            (terms.a.to_dtype(DType::F32)?, terms.b.to_dtype(DType::F32)?)
        };
        if !one_scale {
            b = (b.to_dtype(DType::F64)? * terms.scale())?.to_dtype(b.dtype())?;
        }
        columns.push(b.pad_with_zeros(0, rows.start, outputs.saturating_sub(rows.end))?);
        downs.push(a);
    }
    let (a, b) = (Tensor::cat(&downs, 0)?, Tensor::cat(&columns, 1)?);
    let alpha = if one_scale { scale * as_number(rank) } else { as_number(rank) };
    Ok(LowRank { a, b, alpha, stabilised: false, bias: None })
}
