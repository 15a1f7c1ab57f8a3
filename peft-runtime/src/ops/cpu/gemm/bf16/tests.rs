use half::bf16;

use super::block::Kernel;
use super::multiply;
use super::twin::{AmxOrder, Avx512Order, Twin};
use crate::ops::cpu::element::Element;
use crate::ops::cpu::gemm::named::Named;
use crate::ops::cpu::gemm::panels::Destination;
use crate::ops::cpu::matrix::{Matrix, Write};

/// The numbers of a congruential generator.
struct Bits(u64);

impl Bits {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// Values between −1 and 1.
    fn ordinary(&mut self) -> bf16 {
        bf16::from_f32((self.next() % (1 << 16)) as f32 / f32::from(1u16 << 15) - 1.0)
    }

    /// Any bits: all exponents, denormals, infinity, NaN.
    fn any(&mut self) -> bf16 {
        bf16::from_bits(self.next() as u16)
    }

    /// Values about as large as the smallest ones that are normal, and zeros of both signs.
    fn tiny(&mut self) -> bf16 {
        let magnitude = if self.next().is_multiple_of(5) { 0 } else { self.next() % 0x0200 };
        self.with_sign(magnitude as u16)
    }

    /// Values whose squares are about as large.
    fn small(&mut self) -> bf16 {
        let magnitude = 0x2000 + self.next() % 0x0200;
        self.with_sign(magnitude as u16)
    }

    fn with_sign(&mut self, magnitude: u16) -> bf16 {
        let sign = if self.next().is_multiple_of(2) { 0 } else { 0x8000 };
        bf16::from_bits(sign | magnitude)
    }
}

/// The bits of a product of `rows` rows, those of NaN all alike. The destination has two columns more, which have to stay.
fn product<K: Kernel>(lhs: Matrix<'_, bf16>, rhs: Matrix<'_, bf16>, write: Write) -> Vec<u32> {
    let stride = rhs.columns() + 2;
    let mut sums = vec![7f32; lhs.rows() * stride];
    let destination = Destination { start: sums.as_mut_ptr(), row_stride: stride, write, scale: 1.0 };
    // SAFETY: the caller looked whether the instructions are there; the destination has these rows and columns.
    unsafe { multiply::<K>(destination, lhs, rhs) };
    for row in sums.chunks_exact(stride) {
        assert_eq!(row[rhs.columns()..], [7.0; 2]);
    }
    sums.iter().map(|sum| if sum.is_nan() { f32::NAN.to_bits() } else { sum.to_bits() }).collect()
}

/// Rows, places of the inner dimension, columns: edges of blocks, of steps and chunks, several groups.
const SIZES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (8, 32, 32),
    (9, 31, 33),
    (33, 70, 65),
    (16, 288, 16),
    (40, 330, 40),
    (8, 1800, 40),
    (3, 64, 700),
    (70, 2, 5),
];

/// Compares a kernel with its twin, bit for bit.
fn check<K: Kernel, T: Kernel>() {
    type Draw = fn(&mut Bits) -> bf16;
    let kinds: [(&str, Draw); 4] =
        [("ordinary", Bits::ordinary), ("any", Bits::any), ("tiny", Bits::tiny), ("small", Bits::small)];
    for ((rows, inner, columns), (kind, draw)) in
        SIZES.into_iter().flat_map(|size| kinds.map(|kind| (size, kind)))
    {
        let mut bits = Bits(3);
        let mut matrix = |count: usize| (0..count).map(|_| draw(&mut bits)).collect::<Vec<_>>();
        let (left, right) = (matrix(2 * rows * inner), matrix(2 * inner * columns));
        let lefts = [(inner, 1), (1, rows), (2 * inner, 2)];
        let rights = [(columns, 1), (1, inner), (2 * columns, 2)];
        for (left_strides, right_strides) in
            lefts.into_iter().flat_map(|left| rights.map(|right| (left, right)))
        {
            let lhs = Matrix::new(&left, (rows, inner), left_strides).unwrap();
            let rhs = Matrix::new(&right, (inner, columns), right_strides).unwrap();
            for write in [Write::Replace, Write::Add] {
                let (ours, twins) = (product::<K>(lhs, rhs, write), product::<T>(lhs, rhs, write));
                let differ = ours.iter().zip(&twins).filter(|(ours, twin)| ours != twin).count();
                assert_eq!(
                    differ, 0,
                    "{rows}x{inner}x{columns} {kind} {left_strides:?} {right_strides:?} {write:?}"
                );
            }
        }
    }
}

/// Whether a kernel is there; otherwise the test says that it was skipped.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn is_there(kernel: Named) -> bool {
    let missing = kernel.missing();
    if let Some(reason) = missing {
        eprintln!("skipped: {reason}");
    }
    missing.is_none()
}

#[test]
#[cfg(target_arch = "x86_64")]
fn avx512_has_the_bits_of_its_twin() {
    if is_there(Named::Avx512Bf16) {
        check::<super::avx512::Avx512, Twin<Avx512Order>>();
    }
}

#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_has_the_bits_of_its_twin() {
    if is_there(Named::Amx) {
        check::<super::amx::Amx, Twin<AmxOrder>>();
    }
}

/// A number for all bits of a product of random values, ordinary ones and any.
fn digest<K: Kernel>() -> u64 {
    let draws: [fn(&mut Bits) -> bf16; 3] = [Bits::ordinary, Bits::any, Bits::small];
    let mut digest = 0u64;
    for draw in draws {
        let mut bits = Bits(11);
        let mut matrix = |count: usize| (0..count).map(|_| draw(&mut bits)).collect::<Vec<_>>();
        let (left, right) = (matrix(33 * 330), matrix(330 * 65));
        let lhs = Matrix::contiguous(&left, 33, 330).unwrap();
        let rhs = Matrix::contiguous(&right, 330, 65).unwrap();
        for bits in product::<K>(lhs, rhs, Write::Replace) {
            digest = (digest ^ u64::from(bits)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    digest
}

/// The number is from an Intel Xeon with the instruction.
#[test]
fn the_twin_of_avx512_has_the_bits_that_a_processor_was_seen_to_compute() {
    assert_eq!(digest::<Twin<Avx512Order>>(), 3637869949612465241);
}

/// The product of a row and a column by a twin, in the ninth of nine rows.
fn twin<T: Kernel>(x: &[f32], w: &[f32]) -> f32 {
    let narrow = |values: &[f32]| values.iter().map(|value| bf16::from_f32(*value)).collect::<Vec<_>>();
    let (x, w) = (narrow(&x.repeat(9)), narrow(w));
    let lhs = Matrix::contiguous(&x, 9, w.len()).unwrap();
    let rhs = Matrix::contiguous(&w, w.len(), 1).unwrap();
    f32::from_bits(product::<T>(lhs, rhs, Write::Replace)[8 * 3])
}

/// What processors with the instructions were seen to compute.
#[test]
fn twins_treat_special_values_as_the_instructions_do() {
    let (inf, tiny) = (f32::INFINITY, f32::MIN_POSITIVE);
    let cases: [(&[f32], &[f32], f32); 11] = [
        (&[inf], &[0.0], f32::NAN),
        (&[inf, inf], &[1.0, -1.0], f32::NAN),
        (&[f32::NAN], &[1.0], f32::NAN),
        (&[3e38], &[3e38], inf),
        (&[-0.0], &[1.0], 0.0),
        (&[-0.0, -0.0], &[1.0, 1.0], 0.0),
        (&[1e-39], &[1_048_576.0], 0.0),
        (&[1.0], &[1e-39], 0.0),
        (&[tiny], &[0.5], 0.0),
        (&[tiny, tiny], &[0.5, 0.5], 0.0),
        (&[1.5 * tiny, tiny], &[1.0, -1.0], 0.0),
    ];
    for (x, w, expected) in cases {
        for sum in [twin::<Twin<AmxOrder>>(x, w), twin::<Twin<Avx512Order>>(x, w)] {
            let same = sum.to_bits() == expected.to_bits() || sum.is_nan() && expected.is_nan();
            assert!(same, "{x:?} · {w:?} = {sum:e}, expected {expected:e}");
        }
    }
}

/// The two orders give different sums of 2²⁴ and ones, which f32 cannot add to it one by one.
#[test]
fn twins_add_in_the_orders_of_the_instructions() {
    let large = f32::powi(2.0, 12);
    // Even places: 2²⁴ + 1 rounds to 2²⁴. Odd places: 1 + 1. AMX has 2²⁴ + 2; AVX-512 adds the ones one by one.
    let (x, w) = ([large, 1.0, 1.0, 1.0], [large, 1.0, 1.0, 1.0]);
    let exact = large * large;
    assert_eq!(twin::<Twin<AmxOrder>>(&x, &w), exact + 2.0);
    assert_eq!(twin::<Twin<Avx512Order>>(&x, &w), exact);
}

#[test]
fn twins_are_near_the_exact_product() {
    let mut bits = Bits(5);
    let (rows, inner, columns) = (9, 1000, 7);
    let mut matrix = |count: usize| (0..count).map(|_| bits.ordinary()).collect::<Vec<_>>();
    let (left, right) = (matrix(rows * inner), matrix(inner * columns));
    let lhs = Matrix::contiguous(&left, rows, inner).unwrap();
    let rhs = Matrix::contiguous(&right, inner, columns).unwrap();
    for sums in
        [product::<Twin<AmxOrder>>(lhs, rhs, Write::Add), product::<Twin<Avx512Order>>(lhs, rhs, Write::Add)]
    {
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            let term = |p: usize| {
                f64::from(left[row * inner + p].wide()) * f64::from(right[p * columns + column].wide())
            };
            let exact = 7.0 + (0..inner).map(term).sum::<f64>();
            let sum = f64::from(f32::from_bits(sums[row * (columns + 2) + column]));
            assert!((sum - exact).abs() < 1e-4, "{sum}, expected {exact}");
        }
    }
}
