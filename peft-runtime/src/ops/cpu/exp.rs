//! The exponential and the error function of f32, without branches, so that loops over them vectorise.

use std::f32::consts::LOG2_E;

/// Below it the result is zero instead of less than 7.5e-38, and the products stay clear of subnormal numbers, which
/// are slow.
const LOWEST: f32 = -85.5;
/// Above it the result is infinite, as eˣ is in f32 from 88.723 on.
const HIGHEST: f32 = 88.8;
/// 1.5 · 2²³: a small number added to it is rounded to an integer, which is then in the lowest bits.
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
    // Half the power of two, whose exponent goes up to 128: 2¹²⁸ itself is not an f32.
    let half_scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(126 << 23));
    let result = mantissa * half_scale * 2.0;
    if x < LOWEST { 0.0 } else { result }
}

/// The error function within 3e-7, without branches, so that loops over it vectorise: its series up to 1, and beyond that the
/// rational Chebyshev fit of `erfc(x) = t · exp(−x² + p(t))` with `t = 1 / (1 + |x| / 2)`.
#[inline(always)]
pub(super) fn erf_f32(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 10] = [
        0.170_872_77,
        -0.822_152_2,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ];
    /// 2/√π · (−1)ⁿ / (n! (2n + 1)), last term first.
    const SERIES: [f32; 10] = [
        -1.636_584_4e-7,
        1.646_211_4e-6,
        -1.492_565e-5,
        0.000120553326,
        -0.000_854_832_7,
        0.005_223_978,
        -0.026_866_172,
        0.112_837_92,
        -0.376_126_38,
        std::f32::consts::FRAC_2_SQRT_PI,
    ];
    let distance = x.abs();
    let mut near = 0.0;
    for coefficient in SERIES {
        near = near * (x * x) + coefficient;
    }
    let t = 1.0 / (1.0 + 0.5 * distance);
    let mut polynomial = 0.0;
    for coefficient in COEFFICIENTS {
        polynomial = polynomial * t + coefficient;
    }
    let beyond = t * exp_f32(polynomial - distance * distance);
    if distance < 1.0 { near * x } else { (1.0 - beyond).copysign(x) }
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

    #[test]
    fn the_error_function_is_near_candles() {
        for step in -60_000..60_000 {
            let x = step as f32 * 1e-4;
            let (ours, theirs) = (super::erf_f32(x), candle_core::cpu::erf::erf_f64(f64::from(x)));
            assert!((f64::from(ours) - theirs).abs() < 3e-7, "{x}: {ours} {theirs}");
        }
        assert_eq!([f32::INFINITY, f32::NEG_INFINITY].map(super::erf_f32), [1.0, -1.0]);
        assert!(super::erf_f32(f32::NAN).is_nan());
    }
}
