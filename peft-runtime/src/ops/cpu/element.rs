//! The floats that kernels read and write while they compute in f32: f32 itself, bf16 and f16.

use candle_core::WithDType;
use half::{bf16, f16};

use super::dispatch::dispatched;
use super::threads::for_each;

/// A float that f32 holds exactly.
pub(crate) trait Element: WithDType {
    /// The same value in f32.
    fn wide(self) -> f32;

    /// Writes `values` into `wide`, which has the same length.
    fn widen(values: &[Self], wide: &mut [f32]);

    /// Writes the nearest values into `rounded`, which has the same length; of two that are equally near, the even one.
    fn round(values: &[f32], rounded: &mut [Self]);
}

/// How many elements a thread converts at a time.
const TASK: usize = 1 << 14;

/// Writes `values` into `wide`, which has the same length, on all threads.
pub(crate) fn widen_all<T: Element>(values: &[T], wide: &mut [f32]) {
    let tasks = wide.chunks_mut(TASK).zip(values.chunks(TASK));
    for_each(tasks, |(wide, values)| T::widen(values, wide));
}

/// Writes the nearest values into `rounded`, which has the same length, on all threads.
pub(crate) fn round_all<T: Element>(values: &[f32], rounded: &mut [T]) {
    let tasks = rounded.chunks_mut(TASK).zip(values.chunks(TASK));
    for_each(tasks, |(rounded, values)| T::round(values, rounded));
}

impl Element for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn widen(values: &[Self], wide: &mut [f32]) {
        wide.copy_from_slice(values);
    }

    fn round(values: &[f32], rounded: &mut [Self]) {
        rounded.copy_from_slice(values);
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn widen(values: &[Self], wide: &mut [f32]) {
        widen_bf16(values, wide);
    }

    fn round(values: &[f32], rounded: &mut [Self]) {
        round_bf16(values, rounded);
    }
}

impl Element for f16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn widen(values: &[Self], wide: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if super::dispatch::has_f16c() {
            // SAFETY: the processor has the features.
            return unsafe { f16c::widen(values, wide) };
        }
        wide.iter_mut().zip(values).for_each(|(wide, value)| *wide = value.to_f32());
    }

    fn round(values: &[f32], rounded: &mut [Self]) {
        #[cfg(target_arch = "x86_64")]
        if super::dispatch::has_f16c() {
            // SAFETY: the processor has the features.
            return unsafe { f16c::round(values, rounded) };
        }
        rounded.iter_mut().zip(values).for_each(|(rounded, value)| *rounded = Self::from_f32(*value));
    }
}

dispatched! {
    fn widen_bf16[](values: &[bf16], wide: &mut [f32]) {
        for (wide, value) in wide.iter_mut().zip(values) {
            *wide = f32::from_bits(u32::from(value.to_bits()) << 16);
        }
    }

    fn round_bf16[](values: &[f32], rounded: &mut [bf16]) {
        for (rounded, value) in rounded.iter_mut().zip(values) {
            let bits = value.to_bits();
            // Half of the last place that is kept, less one if the value before the cut is even.
            let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            let quiet = (bits >> 16) | 0x40;
            *rounded = bf16::from_bits(if value.is_nan() { quiet } else { nearest } as u16);
        }
    }
}

/// The processor's own conversions.
#[cfg(target_arch = "x86_64")]
mod f16c {
    use std::arch::x86_64::{
        __m128i, _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128, _mm_storeu_si128, _mm256_cvtph_ps,
        _mm256_cvtps_ph, _mm256_loadu_ps, _mm256_storeu_ps,
    };

    use half::f16;

    const LANES: usize = 8;

    #[target_feature(enable = "avx,f16c")]
    pub(super) fn widen(values: &[f16], wide: &mut [f32]) {
        let ((blocks, rest), (wide, wide_rest)) =
            (values.as_chunks::<LANES>(), wide.as_chunks_mut::<LANES>());
        for (wide, block) in wide.iter_mut().zip(blocks) {
            // SAFETY: both have eight values.
            unsafe {
                let block = _mm_loadu_si128(block.as_ptr().cast::<__m128i>());
                _mm256_storeu_ps(wide.as_mut_ptr(), _mm256_cvtph_ps(block));
            }
        }
        wide_rest.iter_mut().zip(rest).for_each(|(wide, value)| *wide = value.to_f32());
    }

    #[target_feature(enable = "avx,f16c")]
    pub(super) fn round(values: &[f32], rounded: &mut [f16]) {
        let ((blocks, rest), (rounded, rounded_rest)) =
            (values.as_chunks::<LANES>(), rounded.as_chunks_mut::<LANES>());
        for (rounded, block) in rounded.iter_mut().zip(blocks) {
            // SAFETY: both have eight values.
            unsafe {
                let block = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(block.as_ptr()));
                _mm_storeu_si128(rounded.as_mut_ptr().cast::<__m128i>(), block);
            }
        }
        rounded_rest.iter_mut().zip(rest).for_each(|(rounded, value)| *rounded = f16::from_f32(*value));
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::Element;

    #[test]
    fn every_half_value_is_widened_as_the_library_half_does() {
        let values: Vec<u16> = (0..=u16::MAX).collect();
        let same =
            |ours: f32, theirs: f32| ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan());
        let mut wide = vec![0f32; values.len()];
        let halves: Vec<bf16> = values.iter().map(|bits| bf16::from_bits(*bits)).collect();
        bf16::widen(&halves, &mut wide);
        assert!(
            halves
                .iter()
                .zip(&wide)
                .all(|(half, wide)| same(*wide, half.to_f32()) && same(half.wide(), *wide))
        );
        let halves: Vec<f16> = values.iter().map(|bits| f16::from_bits(*bits)).collect();
        f16::widen(&halves, &mut wide);
        assert!(
            halves
                .iter()
                .zip(&wide)
                .all(|(half, wide)| same(*wide, half.to_f32()) && same(half.wide(), *wide))
        );
    }

    /// Values in the middle between two neighbours and next to it, with all exponents; infinity, NaN and denormals.
    #[test]
    fn values_are_rounded_to_the_nearest_as_the_library_half_does() {
        let bits = (0..1u32 << 16)
            .flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| high << 16 | low));
        let middles =
            (0..1u32 << 16).flat_map(|high| [0xfff, 0x1000, 0x1001, 0x3000].map(|low| high << 16 | low));
        let values: Vec<f32> = bits.chain(middles).map(f32::from_bits).collect();
        let mut rounded = vec![bf16::ZERO; values.len()];
        bf16::round(&values, &mut rounded);
        for (value, rounded) in values.iter().zip(&rounded) {
            let expected = bf16::from_f32(*value);
            assert!(
                *rounded == expected && rounded.is_sign_negative() == expected.is_sign_negative()
                    || value.is_nan() && rounded.is_nan(),
                "{value:e}"
            );
        }
        let mut rounded = vec![f16::ZERO; values.len()];
        f16::round(&values, &mut rounded);
        for (value, rounded) in values.iter().zip(&rounded) {
            let expected = f16::from_f32(*value);
            assert!(
                *rounded == expected && rounded.is_sign_negative() == expected.is_sign_negative()
                    || value.is_nan() && rounded.is_nan(),
                "{value:e}"
            );
        }
    }
}
