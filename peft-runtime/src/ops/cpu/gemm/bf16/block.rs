//! The memory that kernels of pairs work on.

use half::bf16;

/// The rows and columns of a block of sums, and the inner places of a step.
pub(super) const BLOCK: usize = 32;

/// A cache line of bf16: a row of a step of the left factor, or a row of a tile of the right one.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(in crate::ops::cpu::gemm) struct Line(pub(super) [bf16; BLOCK]);

/// A cache line of sums: half a row of a block.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(in crate::ops::cpu::gemm) struct SumLine(pub(super) [f32; BLOCK / 2]);

/// Computes blocks of sums. The value lives as long as the thread needs the instructions.
pub(in crate::ops::cpu::gemm) trait Kernel: Sized {
    /// Makes the thread ready.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn begin() -> Self;

    /// `sums (+)= left · right` for 32 rows and 32 columns over some steps of 32; `continues` says whether it is added.
    ///
    /// The rows of `left` begin `stride` lines apart, with a line for each step. A step of `right` is two tiles of 16 lines, for the
    /// first and the last 16 columns; line r of a tile has the places 2r and 2r + 1 of each column side by side.
    ///
    /// # Safety
    /// The processor has the instructions, and the slices are that long.
    unsafe fn block(
        &self,
        left: &[Line],
        stride: usize,
        right: &[Line],
        steps: usize,
        sums: &mut [SumLine],
        continues: bool,
    );
}
