//! The sums without vectors of the processor's own.

use crate::ops::cpu::element::Element;

/// How many sums run side by side, for compilers to make vectors of.
const LANES: usize = 16;

/// Σ x·y for slices that begin at `rows` and are as long as `column`.
///
/// # Safety
/// Each of `rows` points to as many values as `column` has.
pub(super) unsafe fn sums<T: Element, const M: usize>(rows: [*const f32; M], column: &[T]) -> [f32; M] {
    // SAFETY: the caller vouches for these values.
    rows.map(|row| sum(unsafe { std::slice::from_raw_parts(row, column.len()) }, column))
}

fn sum<T: Element>(row: &[f32], column: &[T]) -> f32 {
    let ((rows, row_rest), (columns, column_rest)) = (row.as_chunks::<LANES>(), column.as_chunks::<LANES>());
    let mut lanes = [0f32; LANES];
    for (row, column) in rows.iter().zip(columns) {
        for (lane, (x, y)) in lanes.iter_mut().zip(row.iter().zip(column)) {
            *lane += x * y.wide();
        }
    }
    let rest = row_rest.iter().zip(column_rest).map(|(x, y)| x * y.wide()).sum::<f32>();
    lanes.iter().sum::<f32>() + rest
}
