//! Products of bf16 with bf16 by instructions that multiply pairs: AMX tiles, and `vdpbf16ps` of AVX-512.
//!
//! | module | has |
//! | --- | --- |
//! | `block` | the memory that kernels work on, and what a kernel is |
//! | `pack` | copies the factors into the order of the instructions |
//! | `avx512`, `amx` | a block of 32×32 sums by one instruction set |
//! | `twin` | the same sums without it, bit for bit |
//!
//! Both instructions read a denormal as zero and write none, and have an order of their own for a sum; `twin` says which. So their
//! results differ from those of other kernels within the error of a sum in f32. They are used where they are faster, or where
//! `PEFT_CPU_KERNELS` names them. The order depends neither on the number of threads nor on how many rows there are.
//!
//! The right factor is packed just before it is used, a group of panels at a time, so that a frozen weight is held as it is.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
mod block;
mod pack;
#[cfg(test)]
mod twin;

use std::cell::Cell;
use std::ops::Range;

use half::bf16;

use self::block::{BLOCK, Kernel, Line, SumLine};
use self::pack::{pack_left, pack_right};
use super::panels::Destination;
use crate::ops::cpu::dispatch::dispatched;
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::cpu::slices::first;

/// The most steps of a part of the inner dimension: a group of panels has that many.
const SLAB: usize = 54;

/// The steps of which a block of the left factor stays in the first cache: 18 KiB.
const CHUNK: usize = 9;

/// The most bytes of a group of panels, which stays in the second cache.
const GROUP_BYTES: usize = 1 << 20;

/// The lines of a step of a panel: two tiles of 16.
const STEP_LINES: usize = BLOCK;

/// The lines of a block of sums: 32 rows of 32.
const SUM_LINES: usize = 2 * BLOCK;

/// Where a thread packs factors and adds up. It is kept because fresh memory costs more than packing.
#[derive(Default)]
struct Scratch {
    left: Vec<Line>,
    panels: Vec<Line>,
    sums: Vec<SumLine>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = const {
        Cell::new(Scratch { left: Vec::new(), panels: Vec::new(), sums: Vec::new() })
    };
}

/// `total` in equal parts of at most `most`: the length of a part.
fn part(total: usize, most: usize) -> usize {
    total.div_ceil(total.div_ceil(most.max(1)).max(1)).max(1)
}

/// The parts of `range`, `step` long.
fn parts(range: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(step.max(1)).map(move |start| start..range.end.min(start + step))
}

/// `destination (+)= scale · lhs · rhs` by a kernel, on the calling thread, for an inner dimension that is not empty.
///
/// # Safety
/// The processor has the kernel's instructions. The destination has as many rows as `lhs` and as many columns as `rhs`, and
/// nothing else reads or writes them meanwhile.
pub(super) unsafe fn multiply<K: Kernel>(
    destination: Destination,
    lhs: Matrix<'_, bf16>,
    rhs: Matrix<'_, bf16>,
) {
    let mut scratch = SCRATCH.take();
    // SAFETY: the caller vouches for the instructions.
    let kernel = unsafe { K::begin() };
    let steps = lhs.columns().div_ceil(BLOCK);
    let slab = part(steps, SLAB);
    let group = part(rhs.columns().div_ceil(BLOCK), GROUP_BYTES / (slab * STEP_LINES * size_of::<Line>()));
    let product = Product { kernel: &kernel, destination, lhs, rhs, group, whole: slab >= steps };
    for panels in parts(0..rhs.columns().div_ceil(BLOCK), group) {
        for steps in parts(0..steps, slab) {
            // SAFETY: the caller vouches for the destination.
            unsafe { product.add_slab(&mut scratch, panels.clone(), steps) };
        }
    }
    drop(kernel);
    SCRATCH.set(scratch);
}

struct Product<'a, K> {
    kernel: &'a K,
    destination: Destination,
    lhs: Matrix<'a, bf16>,
    rhs: Matrix<'a, bf16>,
    /// How many panels are packed at a time.
    group: usize,
    /// Whether these are all steps: then the sums of a block are complete after its last one.
    whole: bool,
}

impl<K: Kernel> Product<'_, K> {
    /// Adds some steps of some panels to the sums, and stores these after the last step.
    ///
    /// # Safety
    /// As for [`multiply`].
    unsafe fn add_slab(&self, scratch: &mut Scratch, panels: Range<usize>, steps: Range<usize>) {
        let panel_lines = steps.len() * STEP_LINES;
        let row_blocks = self.lhs.rows().div_ceil(BLOCK);
        let sum_blocks = panels.len().max(self.group) * if self.whole { 1 } else { row_blocks };
        let packed = first(&mut scratch.panels, panels.len() * panel_lines);
        let left = first(&mut scratch.left, BLOCK * steps.len());
        let all_sums = first(&mut scratch.sums, sum_blocks * SUM_LINES);
        pack_right(self.rhs, steps.clone(), panels.clone(), packed);
        let ends = steps.end * BLOCK >= self.lhs.columns();
        for row_block in 0..row_blocks {
            pack_left(self.lhs, row_block, steps.clone(), left);
            let start = if self.whole { 0 } else { row_block * self.group };
            let sums = &mut all_sums[start * SUM_LINES..][..panels.len() * SUM_LINES];
            for chunk in parts(0..steps.len(), part(steps.len(), CHUNK)) {
                let continues = steps.start + chunk.start > 0;
                for (lines, sums) in packed.chunks_exact(panel_lines).zip(sums.chunks_exact_mut(SUM_LINES)) {
                    let (left, right) = (&left[chunk.start..], &lines[chunk.start * STEP_LINES..]);
                    // SAFETY: the caller vouches for the instructions; the left block has 32 rows of all steps, the panel the lines
                    // of these steps, and the sums 32 rows.
                    unsafe { self.kernel.block(left, steps.len(), right, chunk.len(), sums, continues) };
                }
            }
            if ends {
                for (panel, sums) in panels.clone().zip(sums.chunks_exact(SUM_LINES)) {
                    // SAFETY: the caller vouches for the destination.
                    unsafe { self.store(row_block, panel, sums) };
                }
            }
        }
    }

    /// Writes a block of sums to its place, or adds it to what is there.
    ///
    /// # Safety
    /// As for [`multiply`].
    unsafe fn store(&self, row_block: usize, panel: usize, sums: &[SumLine]) {
        let Destination { start, row_stride, write, scale } = self.destination;
        let (row, column) = (row_block * BLOCK, panel * BLOCK);
        let (rows, columns) = (self.lhs.rows() - row, self.rhs.columns() - column);
        for (i, sums) in sums.as_chunks::<2>().0.iter().enumerate().take(rows) {
            let place = start.wrapping_add((row + i) * row_stride + column);
            // SAFETY: the caller vouches for these columns of the row.
            let values = unsafe { std::slice::from_raw_parts_mut(place, columns.min(BLOCK)) };
            for (values, sums) in values.chunks_mut(sums[0].0.len()).zip(sums) {
                store_line(values, &sums.0[..values.len()], scale, write == Write::Add);
            }
        }
    }
}

dispatched! {
    fn store_line[](values: &mut [f32], sums: &[f32], scale: f32, adds: bool) {
        if adds {
            values.iter_mut().zip(sums).for_each(|(value, sum)| *value += scale * sum);
        } else {
            values.iter_mut().zip(sums).for_each(|(value, sum)| *value = scale * sum);
        }
    }
}

#[cfg(test)]
mod tests;
