//! The floats that kernels compute in: f32 and f64.

use std::ops::Neg;

use candle_core::WithDType;
use candle_core::cpu::erf::erf_f64;

use super::exp::{erf_f32, exp_f32};

/// f32 or f64, with the functions that kernels need; those of f32 vectorise where they can.
pub(crate) trait Real: WithDType + Neg<Output = Self> {
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;

    /// The value nearest to `value`.
    fn of(value: f64) -> Self;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
    fn erf(self) -> Self;
    fn is_nan(self) -> bool;
    /// `values` in this type; they are converted into `space` if they have another type.
    fn widened<'a>(values: &'a [f32], space: &'a mut Vec<Self>) -> &'a [Self];
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;

    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }

    #[inline(always)]
    fn exp(self) -> Self {
        exp_f32(self)
    }

    #[inline(always)]
    fn ln(self) -> Self {
        f32::ln(self)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }

    #[inline(always)]
    fn erf(self) -> Self {
        erf_f32(self)
    }

    #[inline(always)]
    fn is_nan(self) -> bool {
        f32::is_nan(self)
    }

    fn widened<'a>(values: &'a [f32], _: &'a mut Vec<Self>) -> &'a [Self] {
        values
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;

    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }

    #[inline(always)]
    fn ln(self) -> Self {
        f64::ln(self)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }

    #[inline(always)]
    fn erf(self) -> Self {
        erf_f64(self)
    }

    #[inline(always)]
    fn is_nan(self) -> bool {
        f64::is_nan(self)
    }

    fn widened<'a>(values: &'a [f32], space: &'a mut Vec<Self>) -> &'a [Self] {
        space.clear();
        space.extend(values.iter().copied().map(Self::from));
        space
    }
}
