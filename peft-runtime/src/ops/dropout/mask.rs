//! Dropout masks: what is dropped depends only on the position, so nothing is stored and threads share nothing.

use crate::ops::cpu::dispatch::dispatched;
use crate::ops::cpu::real::Real;

/// The elements that one pass drops, each with the same probability.
///
/// A hash of the pass's key, the row and the place in that row decides whether an element is dropped. So any part of
/// the mask can be computed at any time, as the backward pass does.
#[derive(Clone, Copy, Debug)]
pub struct DropoutMask {
    key: u64,
    /// An element is dropped if its hash is below this.
    threshold: u32,
    /// What the others are multiplied by.
    scale: f64,
}

impl DropoutMask {
    /// A mask that drops with `probability`, at least 0 and below 1; a different key drops different elements.
    pub(crate) fn new(key: u64, probability: f64) -> Self {
        let hashes = f64::from(u32::MAX) + 1.0;
        Self { key, threshold: (probability * hashes) as u32, scale: (1.0 - probability).recip() }
    }

    /// Multiplies the elements of a row by zero or by `1 / (1 - probability)`.
    pub(crate) fn apply<T: Real>(&self, row: usize, values: &mut [T]) {
        let words = mixed(self.key, row as u64);
        drop_row(values, words as u32, (words >> 32) as u32, self.threshold, T::of(self.scale));
    }
}

/// The number at `index` in the sequence of the generator SplitMix64 that is seeded with `key`.
fn mixed(key: u64, index: u64) -> u64 {
    let state = key.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}

/// A 32-bit hash, from operations that vector instructions have too. The multipliers are those of
/// <https://github.com/skeeto/hash-prospector>.
#[inline(always)]
fn hash(place: u32, twist: u32) -> u32 {
    let state = (place ^ (place >> 16)).wrapping_mul(0x21F0_AAAD) ^ twist;
    let state = (state ^ (state >> 15)).wrapping_mul(0xD35A_2D97);
    state ^ (state >> 15)
}

dispatched! {
    fn drop_row[T: Real](values: &mut [T], start: u32, twist: u32, threshold: u32, scale: T) {
        let mut place = start;
        for value in values.iter_mut() {
            *value *= if hash(place, twist) < threshold { T::ZERO } else { scale };
            place = place.wrapping_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DropoutMask, hash, mixed};

    /// Rows of ones under a mask, one after the other.
    fn masked(mask: DropoutMask, rows: usize, columns: usize) -> Vec<f64> {
        let mut values = vec![1.0; rows * columns];
        for (row, values) in values.chunks_mut(columns).enumerate() {
            mask.apply(row, values);
        }
        values
    }

    fn dropped(values: &[f64]) -> f64 {
        values.iter().filter(|value| **value == 0.0).count() as f64
    }

    /// How often both of two elements are dropped, relative to how often they would be if they were independent.
    fn together(pairs: impl Iterator<Item = (f64, f64)>, probability: f64) -> f64 {
        let (mut count, mut both) = (0.0, 0.0);
        for (a, b) in pairs {
            count += 1.0;
            both += if a == 0.0 && b == 0.0 { 1.0 } else { 0.0 };
        }
        both / count / (probability * probability)
    }

    #[test]
    fn elements_are_dropped_with_the_probability_and_the_others_scaled() {
        for probability in [0.1, 0.25, 0.5, 0.9] {
            let values = masked(DropoutMask::new(12345, probability), 500, 512);
            let share = dropped(&values) / values.len() as f64;
            // Five standard errors.
            let tolerance = 5.0 * (probability * (1.0 - probability) / values.len() as f64).sqrt();
            assert!((share - probability).abs() < tolerance, "{share}, expected {probability}");
            let scale = 1.0 / (1.0 - probability);
            assert!(values.iter().all(|value| *value == 0.0 || *value == scale));
        }
    }

    #[test]
    fn neighbours_are_dropped_independently() {
        let (rows, columns) = (500, 512);
        let values = masked(DropoutMask::new(7, 0.5), rows, columns);
        let next_to = values.chunks(columns).flat_map(|row| row.windows(2)).map(|pair| (pair[0], pair[1]));
        let below = values.iter().zip(&values[columns..]).map(|(a, b)| (*a, *b));
        let other = masked(DropoutMask::new(8, 0.5), rows, columns);
        let of_two = values.iter().zip(&other).map(|(a, b)| (*a, *b));
        let shares = [together(next_to, 0.5), together(below, 0.5), together(of_two, 0.5)];
        // The standard error is 0.35%.
        assert!(shares.iter().all(|share| (share - 1.0).abs() < 0.02), "{shares:?}");
    }

    #[test]
    fn any_part_of_a_mask_is_what_it_is_in_the_whole() {
        let mask = DropoutMask::new(3, 0.4);
        let whole = masked(mask, 4, 37);
        let mut part = vec![1f64; 20];
        mask.apply(2, &mut part);
        assert_eq!(part, &whole[2 * 37..][..20]);
        let mut narrow = vec![1f32; 37];
        mask.apply(3, &mut narrow);
        let same = narrow.iter().zip(&whole[3 * 37..]).all(|(a, b)| (*a == 0.0) == (*b == 0.0));
        assert!(same, "another dtype drops the same");
    }

    #[test]
    fn a_probability_of_zero_changes_no_bit() {
        let values = [1.5f32, -0.0, f32::MIN_POSITIVE, f32::INFINITY];
        let mut masked = values;
        DropoutMask::new(1, 0.0).apply(0, &mut masked);
        assert_eq!(masked.map(f32::to_bits), values.map(f32::to_bits));
    }

    #[test]
    fn the_hashes_are_the_same_in_every_version() {
        // From SplitMix64's authors: the first two numbers after the seed 1234567.
        assert_eq!(
            [mixed(1_234_567, 0), mixed(1_234_567, 1)],
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]
        );
        assert_eq!([hash(1, 0), hash(1, 9)], [114_555_507, 1_063_044_618]);
        assert_eq!(hash(u32::MAX, 0x1234_5678), 2_438_329_331);
    }
}
