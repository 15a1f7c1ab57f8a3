//! Layer norm and RMS norm of one row.

use crate::ops::cpu::dispatch::dispatched;
use crate::ops::cpu::real::Real;
use crate::ops::cpu::slices::{sum, sum_of_two};

/// What is subtracted from a row, and what it is multiplied by; nothing is subtracted unless `centred`.
#[inline(always)]
fn statistics<T: Real>(x: &[T], eps: T, centred: bool) -> (T, T) {
    let count = T::of(x.len() as f64);
    let mean = if centred { sum(x, |x| x) / count } else { T::ZERO };
    let mean_square = sum(x, |x| (x - mean) * (x - mean)) / count;
    (mean, T::ONE / (mean_square + eps).sqrt())
}

dispatched! {
    /// `(x − mean) · factor · weight + bias`.
    pub(crate) fn normalise[T: Real](
        y: &mut [T],
        x: &[T],
        weight: &[T],
        bias: Option<&[T]>,
        eps: T,
        centred: bool,
    ) {
        let (mean, factor) = statistics(x, eps, centred);
        match bias {
            Some(bias) => {
                for ((y, x), (weight, bias)) in y.iter_mut().zip(x).zip(weight.iter().zip(bias)) {
                    *y = (*x - mean) * factor * *weight + *bias;
                }
            }
            None => {
                for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
                    *y = (*x - mean) * factor * *weight;
                }
            }
        }
    }

    /// With x̂ the normalised row and g = dy ∘ weight: dx = factor · (g − mean(g) − x̂ · mean(g ∘ x̂)); an RMS norm
    /// omits mean(g).
    pub(crate) fn input_gradient[T: Real](
        dx: &mut [T],
        x: &[T],
        dy: &[T],
        weight: &[T],
        eps: T,
        centred: bool,
    ) {
        let (mean, factor) = statistics(x, eps, centred);
        let count = T::of(x.len() as f64);
        for ((dx, dy), weight) in dx.iter_mut().zip(dy).zip(weight) {
            *dx = *dy * *weight;
        }
        let shift = if centred { sum(dx, |g| g) / count } else { T::ZERO };
        let slope = sum_of_two(dx, x, |g, x| g * ((x - mean) * factor)) / count;
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = factor * (*dx - shift - (*x - mean) * factor * slope);
        }
    }

    /// Adds the row's share of the gradients: dy ∘ x̂ to the weight's, dy to the bias's.
    pub(crate) fn add_parameter_gradients[T: Real](
        dweight: &mut [T],
        dbias: &mut [T],
        x: &[T],
        dy: &[T],
        eps: T,
        centred: bool,
    ) {
        let (mean, factor) = statistics(x, eps, centred);
        for ((dweight, x), dy) in dweight.iter_mut().zip(x).zip(dy) {
            *dweight += *dy * ((*x - mean) * factor);
        }
        for (dbias, dy) in dbias.iter_mut().zip(dy) {
            *dbias += *dy;
        }
    }
}
