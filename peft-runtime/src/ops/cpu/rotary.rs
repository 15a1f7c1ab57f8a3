//! The rotation of one row of heads.

use super::dispatch::dispatched;
use super::real::Real;

dispatched! {
    /// Rotates every head of the row: element i of its first half with element i of its second, by the angle whose cosine
    /// and sine stand at i. `direction` is 1, or −1 for the rotation back.
    pub(crate) fn rotate[T: Real](y: &mut [T], x: &[T], cos: &[T], sin: &[T], direction: T) {
        let half = cos.len();
        for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
            let (y_first, y_second) = y.split_at_mut(half);
            let (x_first, x_second) = x.split_at(half);
            let angles = cos.iter().zip(sin);
            for ((y, (a, b)), (cos, sin)) in y_first.iter_mut().zip(x_first.iter().zip(x_second)).zip(angles) {
                *y = *a * *cos - *b * (*sin * direction);
            }
            let angles = cos.iter().zip(sin);
            for ((y, (a, b)), (cos, sin)) in y_second.iter_mut().zip(x_first.iter().zip(x_second)).zip(angles) {
                *y = *b * *cos + *a * (*sin * direction);
            }
        }
    }
}
