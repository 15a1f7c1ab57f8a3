use half::{bf16, f16};

use super::{Sums, multiply, scalar, takes};
use crate::ops::cpu::gemm::panels::Destination;
use crate::ops::cpu::matrix::{Matrix, Write};

/// Small integers, so that sums are exact in any order, in `T`.
fn integers<T: Sums>(count: usize, modulus: usize) -> Vec<T> {
    let wide: Vec<f32> =
        (0..count).map(|i| ((i * 7 + i / 5) % modulus) as f32 - (modulus / 2) as f32).collect();
    let mut narrow = vec![T::from_f64(0.0); count];
    T::round(&wide, &mut narrow);
    narrow
}

/// The sums of every kind of vector that the processor has, and those without.
fn ways<T: Sums + Vectorised, const M: usize>(rows: [*const f32; M], column: &[T]) -> Vec<[f32; M]> {
    // SAFETY: the tests pass rows that are as long as the column.
    let mut sums = vec![unsafe { scalar::sums(rows, column) }, unsafe { T::sums(rows, column) }];
    #[cfg(target_arch = "x86_64")]
    for vectors in super::x86::Vectors::all() {
        // SAFETY: the processor has these vectors.
        sums.push(unsafe { vectors.sums(rows, column) });
    }
    sums
}

#[cfg(target_arch = "x86_64")]
use super::x86::Load as Vectorised;
#[cfg(not(target_arch = "x86_64"))]
use crate::ops::cpu::element::Element as Vectorised;

fn check_sums<T: Sums + Vectorised>() {
    for length in [0, 1, 7, 15, 16, 31, 63, 64, 65, 127, 200] {
        let (rows, column) = (integers::<f32>(3 * length, 11), integers::<T>(length, 7));
        let starts: [&[f32]; 3] = std::array::from_fn(|i| &rows[i * length..][..length]);
        let expected = starts.map(|row| row.iter().zip(&column).map(|(x, y)| x * y.wide()).sum::<f32>());
        for sums in ways(starts.map(<[f32]>::as_ptr), &column) {
            assert_eq!(sums, expected, "{:?}, {length} values", T::DTYPE);
        }
        for sums in ways([starts[1].as_ptr()], &column) {
            assert_eq!(sums, [expected[1]], "{:?}, {length} values", T::DTYPE);
        }
    }
}

#[test]
fn sums_of_any_length_are_those_of_the_definition_with_every_kind_of_vector() {
    check_sums::<f32>();
    check_sums::<bf16>();
    check_sums::<f16>();
}

fn check_products<T: Sums>() {
    for (rows, inner, columns) in [(1, 70, 9), (2, 17, 3), (3, 20, 5), (4, 33, 2), (5, 100, 7), (7, 64, 1)] {
        let (a, b) = (integers::<f32>(rows * inner, 11), integers::<T>(inner * columns, 7));
        let lhs = Matrix::contiguous(&a, rows, inner).unwrap();
        let rhs = Matrix::contiguous(&b, columns, inner).unwrap().transposed();
        assert!(takes(lhs, rhs));
        for write in [Write::Replace, Write::Add] {
            let mut c = vec![100f32; rows * (columns + 1)];
            let destination =
                Destination { start: c.as_mut_ptr(), row_stride: columns + 1, write, scale: 0.5 };
            // SAFETY: the destination has these rows and columns.
            unsafe { multiply(destination, lhs, rhs) };
            for (place, value) in c.iter().enumerate() {
                let (i, j) = (place / (columns + 1), place % (columns + 1));
                let sum =
                    |j: usize| (0..inner).map(|p| a[i * inner + p] * b[j * inner + p].wide()).sum::<f32>();
                let before = if write == Write::Add { 100.0 } else { 0.0 };
                let expected = if j < columns { before + 0.5 * sum(j) } else { 100.0 };
                assert_eq!(*value, expected, "{:?} {rows}x{inner}x{columns} {write:?}", T::DTYPE);
            }
        }
    }
}

#[test]
fn products_of_one_to_seven_rows_are_those_of_the_definition() {
    check_products::<f32>();
    check_products::<bf16>();
    check_products::<f16>();
}

#[test]
fn infinity_and_nan_spread_and_denormals_count() {
    let (x, tiny) = ([1f32; 20], f32::from(bf16::from_bits(1)));
    let with = |value: bf16| {
        let mut column = [bf16::ZERO; 20];
        column[3] = value;
        ways([x.as_ptr()], &column)
    };
    assert!(with(bf16::INFINITY).iter().all(|sums| sums[0] == f32::INFINITY));
    assert!(with(bf16::NAN).iter().all(|sums| sums[0].is_nan()));
    assert!(with(bf16::from_bits(1)).iter().all(|sums| sums[0] == tiny && tiny > 0.0));
}

#[test]
fn many_rows_short_columns_and_columns_with_gaps_are_left_to_others() {
    let data = [0f32; 256];
    let matrix = |rows, columns| Matrix::contiguous(&data, rows, columns).unwrap();
    assert!(takes(matrix(7, 32), matrix(8, 32).transposed()));
    assert!(!takes(matrix(8, 32), matrix(8, 32).transposed()));
    assert!(!takes(matrix(7, 16), matrix(8, 16).transposed()));
    assert!(!takes(matrix(7, 32), matrix(32, 8)));
    assert!(!takes(matrix(32, 7).transposed(), matrix(8, 32).transposed()));
}
