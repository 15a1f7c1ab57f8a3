//! The exponential of f32 as arithmetic alone, so that loops over it vectorise.

use std::f32::consts::LOG2_E;

/// Below it the result is zero: less than 7.5e-38, and the products stay clear of subnormal numbers, which are slow.
const LOWEST: f32 = -85.5;
/// Above it the result is infinite, as it is from 88.723 on.
const HIGHEST: f32 = 88.8;
/// 1.5 · 2²³: a small number added to it is rounded to a whole one, which then stands in the lowest bits.
const ROUNDING: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has so few digits that its multiples here are exact.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.1219444e-4;

/// eˣ with a relative error below 2e-7; the polynomial is that of the Cephes library.
///
/// NaN gives NaN: the comparisons are written so that it passes through.
#[inline(always)]
pub(super) fn exp_f32(x: f32) -> f32 {
    let bounded = if x > HIGHEST { HIGHEST } else { x };
    let bounded = if bounded < LOWEST { LOWEST } else { bounded };
    let shifted = bounded * LOG2_E + ROUNDING;
    let power = shifted - ROUNDING;
    let rest = bounded - power * LN_2_HIGH - power * LN_2_LOW;
    let mut series = 1.9875691e-4;
    series = series * rest + 1.3981999e-3;
    series = series * rest + 8.333452e-3;
    series = series * rest + 4.1665796e-2;
    series = series * rest + 0.16666666;
    series = series * rest + 0.5;
    let mantissa = series * (rest * rest) + rest + 1.0;
    // Half the power of two, whose exponent goes up to 128: 2¹²⁸ itself is no f32.
    let half_scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(126 << 23));
    let result = mantissa * half_scale * 2.0;
    if x < LOWEST { 0.0 } else { result }
}

#[cfg(test)]
mod tests {
    use super::{LOWEST, exp_f32};

    #[test]
    fn the_relative_error_is_below_3e_7() {
        let steps = 1_000_000;
        for step in 0..=steps {
            let x = LOWEST + (88.72 - LOWEST) * step as f32 / steps as f32;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp_f32(x)) - exact).abs() / exact;
            assert!(error < 3e-7, "exp({x}) is off by {error}");
        }
    }

    #[test]
    fn the_ends_of_the_range_are_zero_and_infinity_and_nan_stays() {
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(exp_f32(-86.0), 0.0);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(88.73), f32::INFINITY);
        assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
        assert!(exp_f32(f32::NAN).is_nan());
    }
}
