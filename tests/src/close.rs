//! Tensors that are equal within a tolerance.

use std::fmt::Display;

use candle_core::{DType, Tensor};
use serde::Deserialize;

/// How far an element may be off: `atol + rtol · |expected|`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerance {
    /// The absolute part.
    pub atol: f64,
    /// The relative part.
    pub rtol: f64,
}

impl Tolerance {
    /// The same for every element.
    pub const fn absolute(atol: f64) -> Self {
        Self { atol, rtol: 0.0 }
    }

    /// A share of the largest expected element, the same for every element: what rounding leaves in sums whose terms cancel.
    pub fn of_largest(share: f64, expected: &Tensor) -> Self {
        let largest =
            elements(expected).map_or(0.0, |elements| elements.into_iter().map(f64::abs).fold(0.0, f64::max));
        Self::absolute(share * largest)
    }
}

/// The largest errors of a comparison that passed.
#[derive(Clone, Copy, Debug, Default)]
pub struct LargestErrors {
    /// The largest absolute error.
    pub max_abs: f64,
    /// The largest error relative to the expected value, where that is not tiny.
    pub max_rel: f64,
}

/// Below this, a value's relative error is not meaningful.
const TINY: f64 = 1e-3;

impl LargestErrors {
    /// The larger errors of two comparisons.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { max_abs: self.max_abs.max(other.max_abs), max_rel: self.max_rel.max(other.max_rel) }
    }
}

/// An element that is out of tolerance.
struct Outlier {
    index: usize,
    found: f64,
    expected: f64,
    allowed: f64,
}

impl Outlier {
    fn error(&self) -> f64 {
        (self.found - self.expected).abs()
    }

    /// By how much the error exceeds what is allowed; NaN exceeds everything.
    fn excess(&self) -> f64 {
        let excess = self.error() - self.allowed;
        if excess.is_nan() { f64::INFINITY } else { excess }
    }
}

/// Compares the elements of two tensors of any types.
///
/// # Errors
/// If the shapes differ or an element is out of tolerance: says which one is furthest out, and how many are.
pub fn compare(found: &Tensor, expected: &Tensor, tolerance: Tolerance) -> Result<LargestErrors, String> {
    if found.dims() != expected.dims() {
        return Err(format!("the shape is {:?}, expected {:?}", found.dims(), expected.dims()));
    }
    let pairs = elements(found)?.into_iter().zip(elements(expected)?);
    let (mut errors, mut outliers) = (LargestErrors::default(), 0);
    let mut furthest: Option<Outlier> = None;
    for (index, (found, expected)) in pairs.enumerate() {
        let error = (found - expected).abs();
        let allowed = tolerance.atol + tolerance.rtol * expected.abs();
        // A NaN is within no tolerance.
        if error.is_nan() || error > allowed {
            let outlier = Outlier { index, found, expected, allowed };
            outliers += 1;
            if furthest.as_ref().is_none_or(|furthest| outlier.excess() > furthest.excess()) {
                furthest = Some(outlier);
            }
        }
        let max_rel = if expected.abs() > TINY { error / expected.abs() } else { 0.0 };
        errors = errors.max(LargestErrors { max_abs: error, max_rel });
    }
    let Some(outlier) = furthest else { return Ok(errors) };
    let Outlier { index, found: value, expected, allowed } = outlier;
    Err(format!(
        "the element {:?} is {value}, expected {expected}: off by {:.2e}, and {allowed:.2e} is allowed; {outliers} of {} elements are out of tolerance",
        place(index, found.dims()),
        outlier.error(),
        found.elem_count(),
    ))
}

/// Whether all elements are within tolerance.
pub fn is_close(found: &Tensor, expected: &Tensor, tolerance: Tolerance) -> bool {
    compare(found, expected, tolerance).is_ok()
}

/// Asserts that all elements are within tolerance; `what` begins the message.
#[track_caller]
pub fn assert_close(found: &Tensor, expected: &Tensor, tolerance: Tolerance, what: impl Display) {
    if let Err(difference) = compare(found, expected, tolerance) {
        panic!("{what}: {difference}");
    }
}

/// The elements as f64, in row-major order.
pub(crate) fn elements(tensor: &Tensor) -> Result<Vec<f64>, String> {
    if tensor.elem_count() == 0 {
        return Ok(Vec::new());
    }
    let flat = tensor.flatten_all().and_then(|flat| flat.to_dtype(DType::F64)?.to_vec1());
    flat.map_err(|error| error.to_string())
}

/// The index of an element in each dimension.
fn place(mut index: usize, dims: &[usize]) -> Vec<usize> {
    let mut place: Vec<usize> = dims
        .iter()
        .rev()
        .map(|size| {
            let here = index % size;
            index /= size;
            here
        })
        .collect();
    place.reverse();
    place
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::{Tolerance, compare, is_close};

    fn tensor(values: [[f32; 3]; 2]) -> Tensor {
        Tensor::new(&values, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_message_names_the_element_that_is_furthest_out_and_counts_all() {
        let expected = tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
        let found = tensor([[1.0, 2.5, 3.0], [4.0, 5.0, 8.0]]);
        let message = compare(&found, &expected, Tolerance::absolute(0.25)).unwrap_err();
        assert_eq!(
            message,
            "the element [1, 2] is 8, expected 6: off by 2.00e0, and 2.50e-1 is allowed; 2 of 6 elements are out of tolerance"
        );
    }

    #[test]
    fn both_parts_of_a_tolerance_count_and_its_bound_is_allowed() {
        let (found, expected) = (tensor([[10.5; 3]; 2]), tensor([[10.0; 3]; 2]));
        assert!(is_close(&found, &expected, Tolerance { atol: 0.25, rtol: 0.025 }));
        assert!(!is_close(&found, &expected, Tolerance { atol: 0.25, rtol: 0.02 }));
        assert!(!is_close(&found, &expected, Tolerance::absolute(0.49)));
        assert!(is_close(&found, &expected, Tolerance::of_largest(0.05, &expected)));
    }

    #[test]
    fn nan_and_other_shapes_are_within_no_tolerance() {
        let (found, expected) = (tensor([[f32::NAN; 3]; 2]), tensor([[0.0; 3]; 2]));
        assert!(!is_close(&found, &expected, Tolerance::absolute(f64::INFINITY)));
        assert!(!is_close(&found, &found, Tolerance::absolute(f64::INFINITY)));
        let turned = expected.t().unwrap();
        assert!(!is_close(&turned, &expected, Tolerance::absolute(f64::INFINITY)));
    }
}
