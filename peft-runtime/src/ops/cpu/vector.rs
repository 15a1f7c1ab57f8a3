//! Arithmetic on whole slices.

use super::dispatch::dispatched;
use super::real::Real;
use super::reduce::sum_of_two;

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
