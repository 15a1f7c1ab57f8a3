//! Arithmetic on whole slices.
//!
//! Sums and maxima run in several lanes at once, so that the compiler vectorises them. The order of the additions depends only
//! on the length, so the results are the same on every machine.

use super::dispatch::dispatched;
use super::real::Real;

const LANES: usize = 16;

/// The first `length` elements of memory that is kept from call to call, which grows if it has fewer.
pub(crate) fn first<T: Default + Clone>(memory: &mut Vec<T>, length: usize) -> &mut [T] {
    if memory.len() < length {
        memory.resize(length, T::default());
    }
    &mut memory[..length]
}

/// Σ term(x).
#[inline(always)]
pub(crate) fn sum<T: Real>(x: &[T], term: impl Fn(T) -> T) -> T {
    let (blocks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [T::ZERO; LANES];
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane += term(*x);
        }
    }
    let tail = rest.iter().fold(T::ZERO, |sum, x| sum + term(*x));
    lanes.iter().fold(tail, |sum, lane| sum + *lane)
}

/// Σ term(x, y) over two slices of one length.
#[inline(always)]
pub(crate) fn sum_of_two<T: Real>(x: &[T], y: &[T], term: impl Fn(T, T) -> T) -> T {
    let ((x_blocks, x_rest), (y_blocks, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut lanes = [T::ZERO; LANES];
    for (x, y) in x_blocks.iter().zip(y_blocks) {
        for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane += term(*x, *y);
        }
    }
    let tail = x_rest.iter().zip(y_rest).fold(T::ZERO, |sum, (x, y)| sum + term(*x, *y));
    lanes.iter().fold(tail, |sum, lane| sum + *lane)
}

/// The largest number in the slice; −∞ if there is none. NaN is ignored.
#[inline(always)]
pub(crate) fn max<T: Real>(x: &[T]) -> T {
    let larger = |a: T, b: T| if b > a { b } else { a };
    let (blocks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [T::NEG_INFINITY; LANES];
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane = larger(*lane, *x);
        }
    }
    lanes.iter().chain(rest).fold(T::NEG_INFINITY, |highest, x| larger(highest, *x))
}

dispatched! {
    /// sum += x.
    pub(crate) fn add[T: Real](sum: &mut [T], x: &[T]) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += *x;
        }
    }

    /// Σ x · y.
    pub(crate) fn dot[T: Real](x: &[T], y: &[T]) -> T {
        sum_of_two(x, y, |x, y| x * y)
    }
}

#[cfg(test)]
mod tests {
    use super::{max, sum, sum_of_two};

    #[test]
    fn every_element_counts_once_whatever_the_length() {
        for length in [0, 1, 15, 16, 17, 100] {
            let x: Vec<f64> = (1..=length).map(f64::from).collect();
            let n = f64::from(length);
            assert_eq!(sum(&x, |x| x), n * (n + 1.0) / 2.0);
            assert_eq!(sum_of_two(&x, &x, |x, y| x * y), n * (n + 1.0) * (2.0 * n + 1.0) / 6.0);
            assert_eq!(max(&x), if length == 0 { f64::NEG_INFINITY } else { n });
        }
    }
}
