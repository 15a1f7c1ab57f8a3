//! What the instructions compute, without them and bit for bit: where one is missing, the results of a machine that has it can still
//! be checked.
//!
//! Both read a denormal as a zero of its sign and write none, and round each sum to the nearest.
//! - AMX adds up the even and the odd places of a step of 32 on their own, each from zero, then the two, and that to the sum.
//! - AVX-512 adds, for each pair, the product of the odd place to the sum and then that of the even place.

use half::bf16;

use super::block::{BLOCK, Kernel, Line, SumLine};
use crate::ops::cpu::element::Element;

/// An order in which a step is added to a sum.
pub(super) trait Order {
    /// `sum` with the products of a step, of which the pairs `left` and `right` are given.
    fn step(sum: f32, pairs: impl Iterator<Item = ([f32; 2], [f32; 2])>) -> f32;
}

pub(super) struct AmxOrder;
pub(super) struct Avx512Order;

/// Zero of the same sign in place of a denormal.
fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}

/// `x·y + sum`, rounded once; a result below the normal range is zero.
fn add(x: f32, y: f32, sum: f32) -> f32 {
    flushed(x.mul_add(y, sum))
}

impl Order for AmxOrder {
    fn step(sum: f32, pairs: impl Iterator<Item = ([f32; 2], [f32; 2])>) -> f32 {
        let (mut even, mut odd) = (0f32, 0f32);
        for (x, y) in pairs {
            (even, odd) = (add(x[0], y[0], even), add(x[1], y[1], odd));
        }
        flushed(sum + flushed(even + odd))
    }
}

impl Order for Avx512Order {
    fn step(sum: f32, pairs: impl Iterator<Item = ([f32; 2], [f32; 2])>) -> f32 {
        pairs.fold(sum, |sum, (x, y)| add(x[0], y[0], add(x[1], y[1], sum)))
    }
}

/// A kernel that adds in an order.
pub(super) struct Twin<O>(std::marker::PhantomData<O>);

impl<O: Order> Kernel for Twin<O> {
    unsafe fn begin() -> Self {
        Self(std::marker::PhantomData)
    }

    unsafe fn block(
        &self,
        left: &[Line],
        stride: usize,
        right: &[Line],
        steps: usize,
        sums: &mut [SumLine],
        continues: bool,
    ) {
        for (row, column) in (0..BLOCK).flat_map(|row| (0..BLOCK).map(move |column| (row, column))) {
            let (tile, column) = (column / 16, column % 16);
            let place = &mut sums[2 * row + tile].0[column];
            let mut sum = if continues { *place } else { 0.0 };
            for step in 0..steps {
                let x = &left[row * stride + step].0;
                let lines = &right[step * BLOCK + 16 * tile..][..16];
                let wide = |value: bf16| flushed(value.wide());
                let pairs = lines.iter().enumerate().map(|(pair, line)| {
                    (
                        [x[2 * pair], x[2 * pair + 1]].map(wide),
                        [line.0[2 * column], line.0[2 * column + 1]].map(wide),
                    )
                });
                sum = O::step(sum, pairs);
            }
            *place = sum;
        }
    }
}
