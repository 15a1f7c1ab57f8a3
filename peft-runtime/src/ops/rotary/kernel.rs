//! The rotation of one row of heads.

use crate::ops::cpu::dispatch::dispatched;
use crate::ops::cpu::real::Real;

dispatched! {
    /// Rotates every head of the row in place: element i of its first half with element i of its second, by the angle
    /// whose cosine and sine are at i. `direction` is 1, or −1 to rotate back.
    pub(crate) fn rotate[T: Real](row: &mut [T], cos: &[T], sin: &[T], direction: T) {
        let half = cos.len();
        for head in row.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for ((first, second), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
                let (a, b, sin) = (*first, *second, *sin * direction);
                *first = a * *cos - b * sin;
                *second = b * *cos + a * sin;
            }
        }
    }
}
