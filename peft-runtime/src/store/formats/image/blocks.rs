//! Updates of fused layers whose parts have ranks of their own: B has their factors in blocks, and zeros elsewhere.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::delta::{LowRank, as_number};
use super::place::{Piece, Place};

/// The ranks that belong to each piece of a fused update; an empty range where it has no update. `None` if ranks are shared.
pub(super) fn columns(terms: &LowRank, place: &Place) -> Result<Option<Vec<Range<usize>>>> {
    let is_cut = |piece: &Piece| !piece.taken.is_empty();
    if place.pieces.len() < 2 || !place.pieces.iter().all(is_cut) || terms.bias.is_some() {
        return Ok(None);
    }
    let mut used = Vec::new();
    for piece in &place.pieces {
        used.push(used_columns(&piece.take(&terms.b, 0)?)?);
    }
    let (pieces, rank) = (used.len(), terms.rank());
    let occupied = || used.iter().filter(|range| !range.is_empty());
    if occupied().count() == 0 || occupied().zip(occupied().skip(1)).any(|(one, next)| one.end > next.start) {
        return Ok(None);
    }
    // Of as many equal blocks as there are parts, or parts with an update; a block's own columns may be zeros.
    for count in [pieces, occupied().count()] {
        let all = count == pieces;
        let mut numbers = 0..;
        let mut block = |range: &Range<usize>| {
            if range.is_empty() && !all {
                return Some(0..0);
            }
            let size = rank / count.max(1);
            let start = numbers.next()? * size;
            let is_inside = range.is_empty() || start <= range.start && range.end <= start + size;
            is_inside.then_some(if range.is_empty() { 0..0 } else { start..start + size })
        };
        let blocks: Option<Vec<_>> = used.iter().map(&mut block).collect();
        if let Some(blocks) = blocks.filter(|_| rank.is_multiple_of(count.max(1))) {
            return Ok(Some(blocks));
        }
    }
    Ok(if occupied().count() > 1 { Some(used) } else { None })
}

/// From the first column that is not zero to the last one.
fn used_columns(b: &Tensor) -> Result<Range<usize>> {
    let sums: Vec<f32> = b.ne(&b.zeros_like()?)?.to_dtype(DType::F32)?.sum(0)?.to_vec1()?;
    let is_used = |sum: &f32| *sum != 0.0;
    let Some(start) = sums.iter().position(is_used) else { return Ok(0..0) };
    let end = sums.iter().rposition(is_used).map_or(start, |last| last + 1);
    Ok(start..end)
}

/// The update with these ranks only, with the same scale.
pub(super) fn of_columns(terms: &LowRank, own: &Range<usize>) -> Result<LowRank> {
    let (all, rank) = (as_number(terms.rank()), as_number(own.len()));
    let alpha = match terms.stabilised {
        true => terms.alpha * rank.sqrt() / all.sqrt(),
        false => terms.alpha * rank / all,
    };
    Ok(LowRank {
        a: terms.a.narrow(0, own.start, own.len())?.contiguous()?,
        b: terms.b.narrow(1, own.start, own.len())?.contiguous()?,
        alpha,
        stabilised: terms.stabilised,
        bias: None,
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::{columns, of_columns};
    use crate::store::formats::image::delta::LowRank;
    use crate::store::formats::image::place::{Piece, Place};

    fn update(b: &[[f32; 4]]) -> LowRank {
        let b = Tensor::new(b.as_flattened(), &Device::Cpu).unwrap().reshape((b.len(), 4)).unwrap();
        let a = Tensor::arange(0f32, 12., &Device::Cpu).unwrap().reshape((4, 3)).unwrap();
        LowRank { a, b, alpha: 6.0, stabilised: false, bias: None }
    }

    fn place() -> Place {
        let row = |module: &str, row: usize| {
            let range = row..row + 1;
            Piece::taking(module, [range])
        };
        Place::of(vec![row("q", 0), row("k", 1)])
    }

    #[test]
    fn blocks_belong_to_their_parts_and_shared_ranks_to_all() {
        let of = |b: &[[f32; 4]]| columns(&update(b), &place()).unwrap();
        assert_eq!(of(&[[1., 2., 0., 0.], [0., 0., 3., 4.]]), Some(vec![0..2, 2..4]));
        // A column of zeros stays with its block.
        assert_eq!(of(&[[0., 2., 0., 0.], [0., 0., 3., 0.]]), Some(vec![0..2, 2..4]));
        assert_eq!(of(&[[1., 0., 0., 0.], [0., 2., 3., 4.]]), Some(vec![0..1, 1..4]));
        assert_eq!(of(&[[1., 2., 0., 0.], [0., 5., 3., 4.]]), None);
        assert_eq!(of(&[[0.; 4], [0.; 4]]), None);
    }

    #[test]
    fn a_part_without_an_update_has_no_ranks_and_the_scale_stays() {
        let terms = update(&[[1., 2., 3., 4.], [0.; 4]]);
        assert_eq!(columns(&terms, &place()).unwrap(), Some(vec![0..4, 0..0]));
        let half = of_columns(&terms, &(0..2)).unwrap();
        assert_eq!((half.rank(), half.scale()), (2, terms.scale()));
        assert_eq!(half.a.to_vec2::<f32>().unwrap(), [[0., 1., 2.], [3., 4., 5.]]);
    }
}
