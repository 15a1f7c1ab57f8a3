//! Products `C (+)= s·A·B` that are summed in f32, on one thread and on packed panels of B, which may be of half
//! precision: it is widened while it is packed.
//!
//! The library `gemm` packs a large part of B on all threads, which all wait for each other before they multiply with
//! it. Here, the thread that multiplies a part of C packs the panel of B that it needs next, into memory of its own
//! that stays in its cache; no thread waits, and A is read in place.

mod kernel;
mod pack;

use std::cell::Cell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use self::kernel::Panel;
use self::pack::pack;
use crate::ops::cpu::element::Element;
use crate::ops::cpu::matrix::{Matrix, Write};

pub(in crate::ops::cpu) use self::kernel::Destination;

/// With fewer rows of A, packing B costs more than it saves,
pub(super) const MIN_ROWS: usize = 8;

/// unless its columns are this short, as those of a low-rank factor are.
pub(super) const SHORT: usize = 16;

/// The most rows of B that a panel has, so that it stays in a core's own cache.
pub(super) const DEPTH: usize = 1024;

/// The most vectors of the processor that a row of a panel has.
const VECTORS: usize = 3;

/// A panel starts at a cache line, so that none of its vectors crosses a line.
const CACHE_LINE: usize = 64;

/// Whether panels of the right one are worth packing: enough rows of A or short columns of B, which has contiguous rows or columns.
pub(super) fn takes(lhs: Matrix<'_, f32>, rhs: Matrix<'_, f32>) -> bool {
    let (row_stride, column_stride) = rhs.strides();
    let worth = lhs.rows() >= MIN_ROWS || lhs.columns() <= SHORT;
    worth && (row_stride == 1 || column_stride == 1)
}

/// `destination (+)= scale · lhs · rhs`.
///
/// # Safety
/// The destination has as many rows as `lhs` and as many columns as `rhs`, and nothing else reads or writes them
/// meanwhile.
pub(super) unsafe fn multiply<R: Element>(
    destination: Destination,
    lhs: Matrix<'_, f32>,
    rhs: Matrix<'_, R>,
) {
    Arch::new().dispatch(Product { destination, lhs, rhs });
}

thread_local! {
    /// Where the thread packs panels. It is kept because fresh memory costs more than packing.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

struct Product<'a, R> {
    destination: Destination,
    lhs: Matrix<'a, f32>,
    rhs: Matrix<'a, R>,
}

impl<R: Element> WithSimd for Product<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // The sums of a tile of C stay in registers, together with a row of the panel and one value of A.
        if S::REGISTER_COUNT >= 32 { self.run::<S, 8>(simd) } else { self.run::<S, 4>(simd) }
    }
}

impl<R: Element> Product<'_, R> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize>(self, simd: S) {
        let (columns, inner) = (self.rhs.columns(), self.lhs.columns());
        let mut scratch = SCRATCH.take();
        let capacity = VECTORS * S::F32_LANES * inner.min(DEPTH) + CACHE_LINE / size_of::<f32>();
        if scratch.len() < capacity {
            scratch.resize(capacity, 0.0);
        }
        let aligned = scratch.as_ptr().align_offset(CACHE_LINE).min(CACHE_LINE / size_of::<f32>());
        for start in (0..inner).step_by(DEPTH) {
            let depth = start..inner.min(start + DEPTH);
            for start in (0..columns).step_by(VECTORS * S::F32_LANES) {
                let part = start..columns.min(start + VECTORS * S::F32_LANES);
                let scratch = &mut scratch[aligned..];
                match part.len().div_ceil(S::F32_LANES) {
                    1 => self.panel::<S, ROWS, 1>(simd, depth.clone(), part, scratch),
                    2 => self.panel::<S, ROWS, 2>(simd, depth.clone(), part, scratch),
                    _ => self.panel::<S, ROWS, VECTORS>(simd, depth.clone(), part, scratch),
                }
            }
        }
        SCRATCH.set(scratch);
    }

    /// Some columns of C, with some rows of B.
    #[inline(always)]
    fn panel<S: Simd, const ROWS: usize, const WIDTH: usize>(
        &self,
        simd: S,
        depth: Range<usize>,
        columns: Range<usize>,
        scratch: &mut [f32],
    ) {
        let width = WIDTH * S::F32_LANES;
        let (row_stride, column_stride) = self.rhs.strides();
        // A panel that is used once or twice is read in place.
        let packs = self.lhs.rows() > 2 * ROWS || column_stride != 1 || columns.len() < width;
        let (values, stride) = match self.rhs.as_f32() {
            Some(rhs) if !packs => (&rhs.data()[depth.start * row_stride + columns.start..], row_stride),
            _ => {
                let packed = &mut scratch[..depth.len() * width];
                pack::<S, R, WIDTH>(self.rhs, depth.clone(), columns.clone(), packed);
                (&*packed, width)
            }
        };
        let mut destination = self.destination;
        destination.start = destination.start.wrapping_add(columns.start);
        if depth.start > 0 {
            destination.write = Write::Add;
        }
        let panel = Panel { values, stride, depth, width: columns.len() };
        // SAFETY: `multiply`'s caller vouches for the destination, of which these are some columns. The panel has `depth.len()`
        // rows: `pack` filled that many, and in place they are rows of `rhs`, whose last element lies in its slice.
        unsafe { panel.multiply::<S, ROWS, WIDTH>(simd, destination, self.lhs) };
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use pulp::{Arch, Scalar, Simd};

    use super::{Destination, Product, takes};
    use crate::ops::cpu::element::Element;
    use crate::ops::cpu::matrix::{Matrix, Write};

    /// Small integers, so that sums are exact in any order.
    fn integers(count: usize, modulus: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7 + i / 5) % modulus) as f32 - (modulus / 2) as f32).collect()
    }

    fn at(matrix: Matrix<'_, f32>, row: usize, column: usize) -> f32 {
        matrix.data()[row * matrix.strides().0 + column * matrix.strides().1]
    }

    fn matrix<T>(data: &[T], rows: usize, columns: usize, transposed: bool) -> Matrix<'_, T> {
        if transposed {
            Matrix::contiguous(data, columns, rows).unwrap().transposed()
        } else {
            Matrix::contiguous(data, rows, columns).unwrap()
        }
    }

    /// Runs a product with the vectors of one kind of processor.
    type Way<R> = Box<dyn Fn(Product<'_, R>)>;

    /// The ways that this processor has.
    fn ways<R: Element>() -> Vec<Way<R>> {
        let mut ways: Vec<Way<R>> = vec![
            Box::new(|product| Arch::new().dispatch(product)),
            Box::new(|product| Scalar::new().vectorize(product)),
        ];
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = pulp::x86::V3::try_new() {
            ways.push(Box::new(move |product| Simd::vectorize(avx2, product)));
        }
        ways
    }

    /// The destination after the product, if all its elements were 100 before and its rows are `stride` apart.
    fn product<R: Element>(
        way: &Way<R>,
        lhs: Matrix<'_, f32>,
        rhs: Matrix<'_, R>,
        stride: usize,
        write: Write,
    ) -> Vec<f32> {
        let mut c = vec![100f32; lhs.rows() * stride];
        // The rows of `stride` elements are longer than those of the product.
        way(Product {
            destination: Destination { start: c.as_mut_ptr(), row_stride: stride, write, scale: 0.5 },
            lhs,
            rhs,
        });
        c
    }

    /// The same, computed by definition.
    fn expected(a: Matrix<'_, f32>, b: Matrix<'_, f32>, stride: usize, write: Write) -> Vec<f32> {
        let before = if write == Write::Add { 100.0 } else { 0.0 };
        let element = |place: usize| {
            let (row, column) = (place / stride, place % stride);
            let sum = |column| (0..a.columns()).map(|p| at(a, row, p) * at(b, p, column)).sum::<f32>();
            if column < b.columns() { before + 0.5 * sum(column) } else { 100.0 }
        };
        (0..a.rows() * stride).map(element).collect()
    }

    /// Every product with a right operand of type `R`, which holds the integers exactly.
    fn check<R: Element>() {
        let sizes = [
            (8, 1, 1),
            (9, 5, 3),
            (13, 17, 49),
            (16, 64, 48),
            (33, 70, 95),
            (64, 40, 130),
            (8, 1030, 20),
            (3, 9, 50),
        ];
        let orders = [(false, false), (false, true), (true, false), (true, true)];
        for ((rows, inner, columns), (left, right)) in
            sizes.into_iter().flat_map(|size| orders.map(|order| (size, order)))
        {
            let (a, b) = (integers(rows * inner, 11), integers(inner * columns, 7));
            let mut narrow = vec![R::from_f64(0.0); b.len()];
            R::round(&b, &mut narrow);
            let (a, b) = (matrix(&a, rows, inner, left), matrix(&b, inner, columns, right));
            let narrow = matrix(&narrow, inner, columns, right);
            for write in [Write::Replace, Write::Add] {
                let stride = columns + 2;
                let expected = expected(a, b, stride, write);
                let all = ways().iter().all(|way| product(way, a, narrow, stride, write) == expected);
                assert!(all, "{:?} {rows}x{inner}x{columns} {left} {right} {write:?}", R::DTYPE);
            }
        }
    }

    #[test]
    fn products_of_any_size_and_order_are_those_of_the_definition() {
        check::<f32>();
        check::<bf16>();
        check::<f16>();
    }

    #[test]
    fn rows_and_columns_that_are_both_apart_are_packed_value_by_value() {
        let (a, b) = (integers(9 * 5, 11), integers(5 * 30 * 4, 7));
        let (a, b) = (matrix(&a, 9, 5, false), Matrix::new(&b, (5, 30), (120, 3)).unwrap());
        for way in ways() {
            assert_eq!(product(&way, a, b, 30, Write::Replace), expected(a, b, 30, Write::Replace));
        }
    }

    #[test]
    fn few_rows_of_long_columns_and_strides_without_order_are_left_to_others() {
        let data = [0f32; 4096];
        let contiguous = |rows, columns| Matrix::contiguous(&data, rows, columns).unwrap();
        assert!(!takes(contiguous(7, 17), contiguous(17, 8)));
        assert!(takes(contiguous(7, 16), contiguous(16, 8)));
        assert!(takes(contiguous(8, 8), contiguous(8, 8)));
        let spread = Matrix::new(&data, (8, 8), (64, 2)).unwrap();
        assert!(!takes(contiguous(8, 8), spread));
    }
}
