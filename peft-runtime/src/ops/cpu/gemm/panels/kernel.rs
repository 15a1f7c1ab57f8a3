//! A panel of B, and what it contributes to C.

use std::ops::Range;

use pulp::Simd;

use crate::ops::cpu::matrix::{Matrix, Write};

/// Where a product goes: rows that are `row_stride` elements apart.
#[derive(Clone, Copy)]
pub(in crate::ops::cpu) struct Destination {
    pub(in crate::ops::cpu) start: *mut f32,
    pub(in crate::ops::cpu) row_stride: usize,
    pub(in crate::ops::cpu) write: Write,
    /// The factor of the product.
    pub(in crate::ops::cpu) scale: f32,
}

/// Some rows and columns of B: rows that are `stride` elements apart.
pub(super) struct Panel<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    /// The rows of B, which are columns of A.
    pub(super) depth: Range<usize>,
    /// How many columns of C it produces; what a row has beyond them is not written.
    pub(super) width: usize,
}

impl Panel<'_> {
    /// `destination (+)= scale · lhs · panel`, `ROWS` rows at a time.
    ///
    /// # Safety
    /// The panel has `depth.len()` rows of `WIDTH` vectors. The destination has as many rows as `lhs` and as many
    /// columns as the panel, and nothing else reads or writes them meanwhile.
    #[inline(always)]
    pub(super) unsafe fn multiply<S: Simd, const ROWS: usize, const WIDTH: usize>(
        &self,
        simd: S,
        destination: Destination,
        lhs: Matrix<'_, f32>,
    ) {
        let scale = simd.splat_f32s(destination.scale);
        let (row_stride, column_stride) = lhs.strides();
        let mut row = 0;
        while row < lhs.rows() {
            // Past the end, the last row is read again; its sums are not written.
            let starts: [*const f32; ROWS] = std::array::from_fn(|i| {
                let row = (row + i).min(lhs.rows() - 1);
                lhs.data().as_ptr().wrapping_add(row * row_stride + self.depth.start * column_stride)
            });
            // SAFETY: the elements of `lhs` in these rows and columns `depth` lie in its slice, and the caller vouches for
            // the panel.
            let sums = unsafe { self.sums::<S, ROWS, WIDTH>(simd, starts, column_stride) };
            for (i, sums) in sums.iter().enumerate().take(lhs.rows() - row) {
                let place = destination.start.wrapping_add((row + i) * destination.row_stride);
                let sums = sums.map(|sum| simd.mul_f32s(scale, sum));
                // SAFETY: the caller vouches for `width` columns of this row.
                unsafe { store_row(simd, place, self.width, destination.write, &sums) };
            }
            row += ROWS;
        }
    }

    /// The sums of a tile of C.
    ///
    /// # Safety
    /// Each start points to `depth.len()` values, `step` apart, and the panel has that many rows of `WIDTH` vectors.
    #[inline(always)]
    unsafe fn sums<S: Simd, const ROWS: usize, const WIDTH: usize>(
        &self,
        simd: S,
        starts: [*const f32; ROWS],
        step: usize,
    ) -> [[S::f32s; WIDTH]; ROWS] {
        let mut sums = [[simd.splat_f32s(0.0); WIDTH]; ROWS];
        let mut panel_row = self.values.as_ptr();
        for p in 0..self.depth.len() {
            let mut values = [simd.splat_f32s(0.0); WIDTH];
            for (j, value) in values.iter_mut().enumerate() {
                // SAFETY: the panel has `WIDTH` vectors in this row.
                *value = unsafe { panel_row.add(j * S::F32_LANES).cast::<S::f32s>().read_unaligned() };
            }
            for (start, sums) in starts.iter().zip(&mut sums) {
                // SAFETY: the row of A has more than `p` values.
                let factor = simd.splat_f32s(unsafe { *start.add(p * step) });
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = simd.mul_add_e_f32s(factor, value, *sum);
                }
            }
            panel_row = panel_row.wrapping_add(self.stride);
        }
        sums
    }
}

/// Writes the first `width` values of the vectors, or adds them to what is there.
///
/// # Safety
/// `place` points to `width` values.
#[inline(always)]
unsafe fn store_row<S: Simd>(simd: S, place: *mut f32, width: usize, write: Write, vectors: &[S::f32s]) {
    for (first, values) in (0..width).step_by(S::F32_LANES).zip(vectors) {
        // SAFETY: there is room up to `width`.
        unsafe { store(simd, place.add(first), width - first, write, *values) };
    }
}

/// Writes as many values as there is `room` for, or adds them to what is there.
///
/// # Safety
/// `place` points to `room` values, or to a whole vector if there is room for more.
#[inline(always)]
unsafe fn store<S: Simd>(simd: S, place: *mut f32, room: usize, write: Write, values: S::f32s) {
    if room >= S::F32_LANES {
        let place = place.cast::<S::f32s>();
        // SAFETY: there is room for a vector.
        unsafe {
            let values = match write {
                Write::Replace => values,
                Write::Add => simd.add_f32s(place.read_unaligned(), values),
            };
            place.write_unaligned(values);
        }
        return;
    }
    let mask = simd.mask_between_m32s(0, room as u32);
    // SAFETY: the mask leaves out what lies beyond the room.
    unsafe {
        let values = match write {
            Write::Replace => values,
            Write::Add => simd.add_f32s(simd.mask_load_ptr_f32s(mask, place), values),
        };
        simd.mask_store_ptr_f32s(mask, place, values);
    }
}
