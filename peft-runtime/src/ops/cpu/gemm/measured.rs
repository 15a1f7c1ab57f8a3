//! Whether a kernel is worth using on this processor: it is timed once, against what would compute its products otherwise.

use std::time::{Duration, Instant};

use candle_core::Result;
use half::bf16;

use super::panels::{self, Destination};
use crate::ops::cpu::matrix::{Matrix, Write};

/// Rows, places of the inner dimension, columns: about 40 microseconds of f32.
const SIZE: (usize, usize, usize) = (128, 256, 64);

/// The fastest of as many rounds counts, so that a moment of other work does not.
const ROUNDS: usize = 9;

/// A kernel is worth using if it takes less than this share of the time in f32. Processors on which `vdpbf16ps` was tried are far from
/// it: Zen 4 takes about half of the time, the Xeons of the Sapphire Rapids family about twice.
const SHARE: f64 = 0.8;

/// Whether `kernel`, which writes `destination = lhs · rhs`, is faster than widening and multiplying in f32.
pub(super) fn is_faster(kernel: impl Fn(Destination, Matrix<'_, bf16>, Matrix<'_, bf16>)) -> Result<bool> {
    let (rows, inner, columns) = SIZE;
    let (left, right) = (vec![bf16::ONE; rows * inner], vec![bf16::ONE; inner * columns]);
    let wide = vec![1f32; rows * inner];
    let lhs = Matrix::contiguous(&left, rows, inner)?;
    let rhs = Matrix::contiguous(&right, inner, columns)?;
    let wide = Matrix::contiguous(&wide, rows, inner)?;
    let mut sums = vec![0f32; rows * columns];
    let start = sums.as_mut_ptr();
    let destination = Destination { start, row_stride: columns, write: Write::Replace, scale: 1.0 };
    let (mut ours, mut others) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        ours = ours.min(time(|| kernel(destination, lhs, rhs)));
        // SAFETY: the destination has these rows and columns.
        others = others.min(time(|| unsafe { panels::multiply(destination, wide, rhs) }));
    }
    Ok(ours.as_secs_f64() < SHARE * others.as_secs_f64())
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}
