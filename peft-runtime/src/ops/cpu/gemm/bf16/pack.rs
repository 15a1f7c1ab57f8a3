//! Copies factors into the order of the instructions, with zeros beyond their edges.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_mm512_loadu_epi16, _mm512_permutex2var_epi16, _mm512_store_si512};
use std::array;
use std::ops::Range;

use half::bf16;

use super::block::{BLOCK, Line};
use crate::ops::cpu::gemm::fetch::fetch;
use crate::ops::cpu::matrix::Matrix;

/// Rows and columns of a tile of pairs.
const TILE: usize = 16;

/// How far ahead columns are fetched: there are more of them than a processor follows by itself.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 4 * BLOCK;

fn at(matrix: Matrix<'_, bf16>, row: usize, column: usize) -> bf16 {
    matrix.data()[row * matrix.strides().0 + column * matrix.strides().1]
}

/// A block of rows of the left factor: a line for each row and step.
pub(super) fn pack_left(lhs: Matrix<'_, bf16>, row_block: usize, steps: Range<usize>, lines: &mut [Line]) {
    let columns = steps.start * BLOCK..lhs.columns().min(steps.end * BLOCK);
    for (i, lines) in lines.chunks_exact_mut(steps.len()).enumerate() {
        let row = row_block * BLOCK + i;
        if row >= lhs.rows() {
            lines.fill(Line::default());
            continue;
        }
        let values = &lhs.data()[row * lhs.strides().0..];
        for (line, start) in lines.iter_mut().zip(columns.clone().step_by(BLOCK)) {
            let width = (columns.end - start).min(BLOCK);
            if lhs.strides().1 == 1
                && let Some(whole) = values[start..start + width].first_chunk()
            {
                // Without the function call that copying a slice of any length takes.
                line.0 = *whole;
                continue;
            }
            let (filled, rest) = line.0.split_at_mut(width);
            match lhs.strides().1 {
                1 => filled.copy_from_slice(&values[start..start + width]),
                stride => {
                    let apart = values[start * stride..].iter().step_by(stride);
                    filled.iter_mut().zip(apart).for_each(|(to, value)| *to = *value);
                }
            }
            rest.fill(bf16::ZERO);
        }
    }
}

/// Panels of 32 columns of the right factor, one after the other: 32 lines for each step.
pub(super) fn pack_right(
    rhs: Matrix<'_, bf16>,
    steps: Range<usize>,
    panels: Range<usize>,
    lines: &mut [Line],
) {
    let place =
        |step: usize, panel: usize| ((panel - panels.start) * steps.len() + step - steps.start) * BLOCK;
    let mut pack = |step: usize, panel: usize| {
        pack_step(rhs, step * BLOCK, panel * BLOCK, &mut lines[place(step, panel)..][..BLOCK]);
    };
    // In the order in which the factor lies in memory.
    if rhs.strides().1 == 1 {
        steps.clone().for_each(|step| panels.clone().for_each(|panel| pack(step, panel)));
    } else {
        panels.clone().for_each(|panel| steps.clone().for_each(|step| pack(step, panel)));
    }
}

/// A step of a panel.
fn pack_step(rhs: Matrix<'_, bf16>, row: usize, column: usize, lines: &mut [Line]) {
    let inside = row + BLOCK <= rhs.rows() && column + BLOCK <= rhs.columns();
    match rhs.strides() {
        (_, 1) if inside => interleave_rows(rhs, row, column, lines),
        #[cfg(target_arch = "x86_64")]
        (1, _) if inside && crate::ops::cpu::dispatch::has_avx() => turn_pairs(rhs, row, column, lines),
        _ => pack_any(rhs, row, column, lines),
    }
}

/// A step with any strides and edges.
fn pack_any(rhs: Matrix<'_, bf16>, row: usize, column: usize, lines: &mut [Line]) {
    for (i, line) in lines.iter_mut().enumerate() {
        let (row, column) = (row + 2 * (i % TILE), column + TILE * (i / TILE));
        for (place, value) in line.0.iter_mut().enumerate() {
            let (row, column) = (row + place % 2, column + place / 2);
            let inside = row < rhs.rows() && column < rhs.columns();
            *value = if inside { at(rhs, row, column) } else { bf16::ZERO };
        }
    }
}

/// A step of contiguous rows: two rows side by side.
fn interleave_rows(rhs: Matrix<'_, bf16>, row: usize, column: usize, lines: &mut [Line]) {
    let stride = rhs.strides().0;
    let values = &rhs.data()[row * stride + column..][..(BLOCK - 1) * stride + BLOCK];
    // The next step of the same panel.
    (BLOCK..2 * BLOCK).for_each(|row| fetch(values, row * stride));
    #[cfg(target_arch = "x86_64")]
    if crate::ops::cpu::dispatch::has_avx512() {
        // SAFETY: the processor has AVX-512 with instructions for halves, there are 32 rows of 32 values, and 32 lines.
        return unsafe { interleave_wide(values, stride, &mut lines[..BLOCK]) };
    }
    let (low, high) = lines.split_at_mut(TILE);
    for (pair, (low, high)) in low.iter_mut().zip(high).enumerate() {
        let values = |row: usize| &values[row * stride..][..BLOCK];
        let (even, odd) = (values(2 * pair), values(2 * pair + 1));
        interleave(&mut low.0, &even[..TILE], &odd[..TILE]);
        interleave(&mut high.0, &even[TILE..], &odd[TILE..]);
    }
}

fn interleave(to: &mut [bf16; BLOCK], even: &[bf16], odd: &[bf16]) {
    for ((to, even), odd) in to.as_chunks_mut::<2>().0.iter_mut().zip(even).zip(odd) {
        *to = [*even, *odd];
    }
}

/// [`interleave_rows`] with vectors of 32 halves.
///
/// # Safety
/// The processor has AVX-512BW; `values` has 32 rows of 32 values, `stride` apart, and there are 32 lines.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn interleave_wide(values: &[bf16], stride: usize, lines: &mut [Line]) {
    // Places in two rows side by side, those of the second from 32 on.
    let places =
        |first: u16| -> [u16; BLOCK] { array::from_fn(|i| first + i as u16 / 2 + 32 * (i as u16 % 2)) };
    let (low, high) = (places(0), places(TILE as u16));
    // SAFETY: an array has 32 halves.
    let (low, high) =
        unsafe { (_mm512_loadu_epi16(low.as_ptr().cast()), _mm512_loadu_epi16(high.as_ptr().cast())) };
    for pair in 0..TILE {
        let row = values.as_ptr().wrapping_add(2 * pair * stride).cast();
        let next = values.as_ptr().wrapping_add((2 * pair + 1) * stride).cast();
        // SAFETY: the caller vouches for 32 values in each row, and a line is 64 bytes and aligned to as many.
        unsafe {
            let (even, odd) = (_mm512_loadu_epi16(row), _mm512_loadu_epi16(next));
            let to = lines.as_mut_ptr().add(pair).cast();
            _mm512_store_si512(to, _mm512_permutex2var_epi16(even, low, odd));
            let to = lines.as_mut_ptr().add(TILE + pair).cast();
            _mm512_store_si512(to, _mm512_permutex2var_epi16(even, high, odd));
        }
    }
}

/// A step of contiguous columns: pairs of neighbours, turned as values of 32 bits.
#[cfg(target_arch = "x86_64")]
fn turn_pairs(rhs: Matrix<'_, bf16>, row: usize, column: usize, lines: &mut [Line]) {
    use crate::ops::cpu::gemm::turn::{BLOCK as TURNED, turn_block};

    let stride = rhs.strides().1;
    (column..column + BLOCK).for_each(|column| fetch(rhs.data(), column * stride + row + AHEAD));
    for (tile, lines) in lines.chunks_exact_mut(TILE).enumerate() {
        for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let from = array::from_fn(|c| {
                let column = column + TILE * tile + TURNED * i + c;
                rhs.data()[column * stride + row + 2 * TURNED * j..][..2 * TURNED].as_ptr().cast::<f32>()
            });
            let to = lines[TURNED * j..][..TURNED].as_mut_ptr().cast::<f32>().wrapping_add(TURNED * i);
            // SAFETY: the caller found AVX. Each column has eight pairs from there, and each of the eight lines sixteen.
            unsafe { turn_block(from, to, TILE) };
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::{BLOCK, Line, at, pack_any, pack_left, pack_right};
    use crate::ops::cpu::matrix::Matrix;

    fn numbered(count: usize) -> Vec<bf16> {
        (0..count).map(|i| bf16::from_bits(i as u16)).collect()
    }

    fn bits(lines: &[Line]) -> Vec<u16> {
        lines.iter().flat_map(|line| line.0.map(bf16::to_bits)).collect()
    }

    #[test]
    fn every_order_is_packed_as_value_by_value() {
        let data = numbered(70 * 110);
        for strides in [(110, 1), (1, 70), (55, 2)] {
            let matrix = Matrix::new(&data, (67, 50), strides).unwrap();
            let mut lines = vec![Line([bf16::NAN; BLOCK]); 4 * BLOCK];
            pack_right(matrix, 1..3, 0..2, &mut lines);
            let mut expected = vec![Line::default(); 4 * BLOCK];
            for (place, lines) in expected.chunks_exact_mut(BLOCK).enumerate() {
                pack_any(matrix, (1 + place % 2) * BLOCK, place / 2 * BLOCK, lines);
            }
            assert_eq!(bits(&lines), bits(&expected), "{strides:?}");
        }
    }

    #[test]
    fn a_step_of_the_right_factor_has_neighbouring_rows_side_by_side() {
        let data = numbered(40 * 40);
        let matrix = Matrix::contiguous(&data, 40, 40).unwrap();
        let mut lines = vec![Line::default(); BLOCK];
        pack_right(matrix, 1..2, 0..1, &mut lines);
        assert_eq!(lines[3].0[8], at(matrix, 32 + 6, 4));
        assert_eq!(lines[3].0[9], at(matrix, 32 + 7, 4));
        assert_eq!(lines[16 + 3].0[9], at(matrix, 32 + 7, 20));
        assert_eq!(lines[4].0[9], bf16::ZERO, "below the last row");
    }

    #[test]
    fn rows_of_the_left_factor_are_padded_with_zeros() {
        let data = numbered(35 * 40);
        for matrix in
            [Matrix::contiguous(&data, 35, 40).unwrap(), Matrix::new(&data, (35, 40), (1, 35)).unwrap()]
        {
            let mut lines = vec![Line([bf16::NAN; BLOCK]); 2 * BLOCK];
            pack_left(matrix, 1, 0..2, &mut lines);
            assert_eq!(lines[2 * 2 + 1].0[7], at(matrix, 34, 39));
            assert_eq!(lines[2 * 2 + 1].0[8], bf16::ZERO);
            assert_eq!(lines[2 * 3].0, [bf16::ZERO; BLOCK]);
        }
    }
}
