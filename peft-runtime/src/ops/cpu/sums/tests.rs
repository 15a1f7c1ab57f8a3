use half::{bf16, f16};

use super::{Term, sum_into};
use crate::ops::cpu::element::Element;
use crate::ops::cpu::gemm::multiplies_bf16;
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::cpu::operand::Operand;

/// Values between −1 and 1, the same in every run: the numbers of a congruential generator.
struct Values(u64);

impl Values {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn narrow<T: Element>(&mut self, count: usize) -> Vec<T> {
        let wide: Vec<f32> = (0..count).map(|_| self.next()).collect();
        narrow(&wide)
    }
}

fn narrow<T: Element>(wide: &[f32]) -> Vec<T> {
    let mut values = vec![T::from_f64(0.0); wide.len()];
    T::round(wide, &mut values);
    values
}

/// How the elements of a matrix lie.
#[derive(Clone, Copy, Debug)]
enum Order {
    Rows,
    Columns,
    Apart,
}

const ORDERS: [Order; 3] = [Order::Rows, Order::Columns, Order::Apart];

/// The matrix over `data`, which has at least four times as many elements.
fn matrix<T>(data: &[T], rows: usize, columns: usize, order: Order) -> Matrix<'_, T> {
    let strides = match order {
        Order::Rows => (columns + 1, 1),
        Order::Columns => (1, rows + 2),
        Order::Apart => (2 * columns, 2),
    };
    Matrix::new(data, (rows, columns), strides).unwrap()
}

fn space(rows: usize, columns: usize) -> usize {
    4 * (rows + 1) * (columns + 1)
}

fn at<T: Element>(matrix: Matrix<'_, T>, row: usize, column: usize) -> f64 {
    f64::from(matrix.data()[row * matrix.strides().0 + column * matrix.strides().1].wide())
}

/// `value` rounded to `T`.
fn round<T: Element>(value: f64) -> f32 {
    let mut rounded = [T::from_f64(0.0)];
    T::round(&[value as f32], &mut rounded);
    rounded[0].wide()
}

/// What one case adds up: two products and a bias.
struct Case<'a, L, R> {
    terms: [(f64, Matrix<'a, L>, Matrix<'a, R>); 2],
    bias: Option<&'a [f32]>,
}

impl<'a, L: Element, R: Element> Case<'a, L, R>
where
    Operand<'a>: From<Matrix<'a, L>> + From<Matrix<'a, R>>,
{
    /// Checks each element against the sum in f64: it lies between what is rounded from a little less and from a little more, by
    /// the error of a sum in f32.
    fn check<T: Element>(&self, write: Write, what: &str) {
        let (rows, columns) = (self.terms[0].1.rows(), self.terms[0].2.columns());
        let before: Vec<T> = Values(9).narrow(rows * columns);
        let mut after = before.clone();
        let terms = self.terms.map(|(scale, lhs, rhs)| Term { scale, lhs: lhs.into(), rhs: rhs.into() });
        sum_into(&mut after, (rows, columns), write, self.bias, &terms).unwrap();
        for place in 0..rows * columns {
            let (row, column) = (place / columns, place % columns);
            let start = if write == Write::Add { f64::from(before[place].wide()) } else { 0.0 };
            let (mut sum, mut size) = (start, start.abs());
            let mut add = |value: f64| (sum, size) = (sum + value, size + value.abs());
            self.bias.iter().for_each(|bias| add(f64::from(bias[column])));
            for (scale, lhs, rhs) in self.terms {
                (0..lhs.columns()).for_each(|p| add(scale * at(lhs, row, p) * at(rhs, p, column)));
            }
            let error = size * 2e-6;
            let (least, most) = (round::<T>(sum - error), round::<T>(sum + error));
            let value = after[place].wide();
            let names = (L::DTYPE, R::DTYPE, T::DTYPE);
            assert!(
                (least..=most).contains(&value),
                "{what} {names:?}: {value} at {row}, {column}, expected {sum}"
            );
        }
    }
}

fn check_types<L: Element, R: Element>(sizes: &[(usize, usize, usize)])
where
    for<'a> Operand<'a>: From<Matrix<'a, L>> + From<Matrix<'a, R>>,
{
    for (index, (rows, inner, columns)) in sizes.iter().copied().enumerate() {
        let mut values = Values(index as u64);
        let left: Vec<L> = values.narrow(space(rows, inner));
        let right: Vec<R> = values.narrow(space(inner, columns));
        let (thin, flat): (Vec<L>, Vec<R>) =
            (values.narrow(space(rows, 3)), values.narrow(space(3, columns)));
        let bias: Vec<f32> = values.narrow(columns);
        for (lhs, rhs) in ORDERS.into_iter().flat_map(|lhs| ORDERS.map(|rhs| (lhs, rhs))) {
            let terms = [
                (1.0, matrix(&left, rows, inner, lhs), matrix(&right, inner, columns, rhs)),
                (0.5, matrix(&thin, rows, 3, lhs), matrix(&flat, 3, columns, rhs)),
            ];
            let what = format!("{rows}x{inner}x{columns} {lhs:?} {rhs:?}");
            for (write, bias) in
                [(Write::Replace, None), (Write::Replace, Some(&bias[..])), (Write::Add, Some(&bias[..]))]
            {
                let case = Case { terms, bias };
                case.check::<f32>(write, &what);
                case.check::<bf16>(write, &what);
                case.check::<f16>(write, &what);
            }
        }
    }
}

/// One row, few, many; edges that are not multiples of anything.
const SIZES: [(usize, usize, usize); 6] =
    [(1, 70, 33), (3, 5, 20), (7, 129, 17), (8, 16, 16), (19, 33, 50), (1, 1, 1)];

#[test]
fn sums_of_every_type_and_order_are_rounded_once() {
    check_types::<f32, f32>(&SIZES);
    check_types::<f32, bf16>(&SIZES);
    check_types::<f32, f16>(&SIZES);
    check_types::<bf16, f32>(&SIZES);
    check_types::<bf16, bf16>(&SIZES);
    check_types::<bf16, f16>(&SIZES);
    check_types::<f16, f32>(&SIZES);
    check_types::<f16, bf16>(&SIZES);
    check_types::<f16, f16>(&SIZES);
}

/// Several tiles, on several threads, and sums that are longer than a panel.
#[test]
fn sums_of_many_tiles_and_panels_are_rounded_once() {
    check_types::<bf16, bf16>(&[(300, 40, 70), (2, 1500, 100), (9, 2100, 40)]);
    check_types::<f32, f16>(&[(1, 300, 1100)]);
}

#[test]
fn special_values_go_through() {
    for rows in [1, 9] {
        // The instructions with pairs read a denormal as zero.
        let tiny = f32::from(bf16::from_bits(3));
        special_values(rows, tiny, if multiplies_bf16(rows).unwrap() { 0.0 } else { tiny });
    }
}

/// Products of some rows, in which a denormal, `tiny`, counts as `counted`.
fn special_values(rows: usize, tiny: f32, counted: f32) {
    let cases = [
        ([f32::INFINITY, 1.0], [1.0, 1.0], f32::INFINITY),
        ([f32::INFINITY, 1.0], [0.0, 1.0], f32::NAN),
        ([f32::INFINITY, f32::INFINITY], [1.0, -1.0], f32::NAN),
        ([f32::NAN, 0.0], [1.0, 1.0], f32::NAN),
        ([-0.0, 0.0], [1.0, 1.0], 0.0),
        ([tiny, 0.0], [1.0, 1.0], counted),
        ([tiny, tiny], [1.0, 1.0], 2.0 * counted),
        ([3e38, 0.0], [3e38, 1.0], f32::INFINITY),
    ];
    for (x, w, expected) in cases {
        let (x, w): (Vec<bf16>, Vec<bf16>) = (narrow(&x.repeat(rows)), narrow(&w));
        let (x, w) = (Matrix::contiguous(&x, rows, 2).unwrap(), Matrix::contiguous(&w, 2, 1).unwrap());
        let mut sums = vec![bf16::ONE; rows];
        let term = Term { scale: 1.0, lhs: x.into(), rhs: w.into() };
        sum_into(&mut sums, (rows, 1), Write::Replace, None, &[term]).unwrap();
        for sum in sums.iter().map(|sum| sum.to_f32()) {
            assert!(sum == expected || sum.is_nan() && expected.is_nan(), "{sum}, expected {expected}");
        }
    }
}

#[test]
fn a_sum_of_nothing_is_the_bias_or_zero_and_may_have_no_elements() {
    let (lhs, rhs) =
        (Matrix::<bf16>::contiguous(&[], 2, 0).unwrap(), Matrix::<bf16>::contiguous(&[], 0, 3).unwrap());
    let empty = Term { scale: 1.0, lhs: lhs.into(), rhs: rhs.into() };
    let mut sums = [bf16::ONE; 6];
    sum_into(&mut sums, (2, 3), Write::Add, None, &[empty]).unwrap();
    assert_eq!(sums, [bf16::ONE; 6]);
    sum_into(&mut sums, (2, 3), Write::Replace, Some(&[1.0, 2.0, 3.0]), &[empty]).unwrap();
    assert_eq!(sums.map(bf16::to_f32), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
    sum_into(&mut sums, (2, 3), Write::Replace, None, &[]).unwrap();
    assert_eq!(sums, [bf16::ZERO; 6]);
    sum_into::<bf16>(&mut [], (0, 3), Write::Add, None, &[]).unwrap();
}

#[test]
fn terms_that_do_not_fit_are_refused() {
    let ones = [bf16::ONE; 6];
    let term = |lhs: (usize, usize), rhs: (usize, usize)| Term {
        scale: 1.0,
        lhs: Matrix::contiguous(&ones, lhs.0, lhs.1).unwrap().into(),
        rhs: Matrix::contiguous(&ones, rhs.0, rhs.1).unwrap().into(),
    };
    let sum = |bias: Option<&[f32]>, term| sum_into(&mut [f16::ONE; 4], (2, 2), Write::Add, bias, &[term]);
    assert!(sum(None, term((2, 3), (3, 2))).is_ok());
    assert!(sum(None, term((2, 3), (2, 2))).is_err());
    assert!(sum(None, term((3, 2), (2, 2))).is_err());
    assert!(sum(Some(&[1.0]), term((2, 3), (3, 2))).is_err());
    assert!(sum_into(&mut [f16::ONE; 3], (2, 2), Write::Add, None, &[]).is_err());
}
