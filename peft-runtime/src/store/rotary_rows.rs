//! The order of the rows of queries and keys: llama.cpp rotates neighbouring pairs of a head's rows, transformers its two halves.

use candle_core::{Result, Tensor};

/// The rows of `[heads · size, …]`, head by head from two halves, as transformers has them, to neighbouring pairs; `None` if they
/// do not divide into pairs.
///
/// # Errors
/// candle's.
pub(crate) fn in_pairs(rows: &Tensor, heads: usize) -> Result<Option<Tensor>> {
    reordered(rows, heads, |half| (2, half))
}

/// The same rows back from pairs to halves.
///
/// # Errors
/// candle's.
pub(crate) fn in_halves(rows: &Tensor, heads: usize) -> Result<Option<Tensor>> {
    reordered(rows, heads, |half| (half, 2))
}

fn reordered(rows: &Tensor, heads: usize, split: impl Fn(usize) -> (usize, usize)) -> Result<Option<Tensor>> {
    let number = rows.dims().first().copied().unwrap_or_default();
    if heads == 0 || number == 0 || !number.is_multiple_of(2 * heads) {
        return Ok(None);
    }
    let (first, second) = split(number / heads / 2);
    let split = rows.reshape((heads, first, second, ()))?;
    Ok(Some(split.transpose(1, 2)?.contiguous()?.reshape(rows.shape())?))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::{in_halves, in_pairs};

    #[test]
    fn halves_become_pairs_within_each_head_and_back() {
        let rows = Tensor::arange(0f32, 8., &Device::Cpu).unwrap().reshape((8, 1)).unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let pairs = in_pairs(&rows, 2).unwrap().unwrap();
        assert_eq!(values(&pairs), [0., 2., 1., 3., 4., 6., 5., 7.]);
        assert_eq!(values(&in_halves(&pairs, 2).unwrap().unwrap()), values(&rows));
        let pairs = in_pairs(&rows, 1).unwrap().unwrap();
        assert_eq!(values(&pairs), [0., 4., 1., 5., 2., 6., 3., 7.]);
        assert_eq!(values(&in_halves(&pairs, 1).unwrap().unwrap()), values(&rows));
        assert!(in_pairs(&rows, 3).unwrap().is_none());
    }

    #[test]
    fn biases_are_reordered_like_rows() {
        let rows = Tensor::arange(0f32, 12., &Device::Cpu).unwrap();
        let halves = in_halves(&rows, 2).unwrap().unwrap();
        assert_eq!(halves.to_vec1::<f32>().unwrap(), [0., 2., 4., 1., 3., 5., 6., 8., 10., 7., 9., 11.]);
        assert!(in_halves(&rows, 5).unwrap().is_none());
    }
}
