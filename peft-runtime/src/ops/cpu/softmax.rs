//! Softmax and its relatives over one row.

use super::dispatch::dispatched;
use super::real::Real;
use super::slices::{max, sum};

dispatched! {
    /// ln Σ exp(x).
    pub(crate) fn log_sum_exp[T: Real](x: &[T]) -> T {
        let highest = max(x);
        highest + sum(x, |x| (x - highest).exp()).ln()
    }

    /// Turns scores, with `bias` added, into probabilities in place; returns the logarithm of the sum of exponentials.
    ///
    /// A row in which nothing can be seen becomes zeros, with a logarithm of −∞.
    pub(crate) fn softmax[T: Real](scores: &mut [T], bias: Option<&[T]>) -> T {
        if let Some(bias) = bias {
            for (score, bias) in scores.iter_mut().zip(bias) {
                *score += *bias;
            }
        }
        let highest = max(scores);
        if highest == T::NEG_INFINITY {
            // The maximum ignores NaN, which must not become a zero here.
            let total = sum(scores, |score| score);
            scores.fill(if total.is_nan() { total } else { T::ZERO });
            return if total.is_nan() { total } else { T::NEG_INFINITY };
        }
        for score in scores.iter_mut() {
            *score = (*score - highest).exp();
        }
        let total = sum(scores, |score| score);
        let factor = T::ONE / total;
        for score in scores.iter_mut() {
            *score *= factor;
        }
        highest + total.ln()
    }

    /// Computes the probabilities again, in place, from the logarithm that [`softmax`] returned.
    pub(crate) fn softmax_again[T: Real](scores: &mut [T], bias: Option<&[T]>, log_sum: T) {
        if log_sum == T::NEG_INFINITY {
            scores.fill(T::ZERO);
            return;
        }
        match bias {
            Some(bias) => {
                for (score, bias) in scores.iter_mut().zip(bias) {
                    *score = (*score + *bias - log_sum).exp();
                }
            }
            None => {
                for score in scores.iter_mut() {
                    *score = (*score - log_sum).exp();
                }
            }
        }
    }

    /// The gradient of the scores from that of the probabilities, in place; `mean` is Σ p · dp of the row.
    pub(crate) fn softmax_gradient[T: Real](gradient: &mut [T], probabilities: &[T], mean: T) {
        for (gradient, probability) in gradient.iter_mut().zip(probabilities) {
            *gradient = *probability * (*gradient - mean);
        }
    }

    /// `scale · softmax(x)`, from the logarithm of the sum of exponentials.
    pub(crate) fn scaled_softmax[T: Real](y: &mut [T], x: &[T], log_sum: T, scale: T) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = (*x - log_sum).exp() * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{log_sum_exp, softmax, softmax_again};

    #[test]
    fn probabilities_add_up_and_come_back_from_the_logarithm() {
        let scores: Vec<f32> = (0..37).map(|i| (i as f32 * 1.7).sin() * 20.0).collect();
        let mut first = scores.clone();
        let log_sum = softmax(&mut first, None);
        assert!((first.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((log_sum - log_sum_exp(&scores)).abs() < 1e-5);
        let mut again = scores;
        softmax_again(&mut again, None, log_sum);
        for (a, b) in first.iter().zip(&again) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }

    #[test]
    fn a_row_with_nothing_to_see_is_zero_and_nan_is_not_hidden() {
        let mut hidden = [1f32, 2.0];
        assert_eq!(softmax(&mut hidden, Some(&[f32::NEG_INFINITY; 2])), f32::NEG_INFINITY);
        assert_eq!(hidden, [0.0, 0.0]);
        let mut bad = [f32::NAN, f32::NEG_INFINITY];
        assert!(softmax(&mut bad, None).is_nan() && bad[1].is_nan());
        assert_eq!(softmax::<f32>(&mut [], None), f32::NEG_INFINITY);
    }
}
