//! What the results of a case in half precision are compared with.
//!
//! `exact.safetensors` has what float64 gives from the same stored weights; `tolerances.json` says for each of its tensors what
//! rounding to the case's dtype may cost. A tensor without a tolerance is one that nothing may change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Tensor};
use serde::Deserialize;

use super::case::read_tensors;
use super::compare::Subject;
use crate::close::elements;

/// How far, in units, the errors of all tensors of one op may be off together.
const SHARED_LIMIT: f64 = 1.15;

/// What results are compared with.
pub(super) struct HalfReference {
    dtype: DType,
    autocasts: bool,
    exact: BTreeMap<String, Tensor>,
    tolerances: BTreeMap<String, HalfTolerance>,
}

/// The errors that rounding may leave in one tensor.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct HalfTolerance {
    /// The root mean square error of rounding.
    unit: f64,
    /// The largest root mean square error.
    rms: f64,
    /// The largest error of an element.
    max: f64,
}

/// The errors found so far.
#[derive(Default)]
pub(super) struct HalfErrors {
    /// The largest quotient of an error and its limit.
    share: f64,
    /// For each op, the root mean square errors of its tensors in their units.
    in_units: BTreeMap<&'static str, Vec<f64>>,
}

impl HalfReference {
    /// Reads the two files of a case in `dtype`.
    ///
    /// # Errors
    /// If one is missing or malformed, or they do not name the same tensors, all of them among the `expected`.
    pub(super) fn read(
        folder: &Path,
        dtype: DType,
        autocasts: bool,
        expected: &BTreeMap<String, Tensor>,
    ) -> Result<Self, String> {
        let exact = read_tensors(&folder.join("exact.safetensors"))?;
        let text = std::fs::read_to_string(folder.join("tolerances.json"));
        let text = text.map_err(|error| format!("tolerances.json: {error}"))?;
        let tolerances: BTreeMap<String, HalfTolerance> =
            serde_json::from_str(&text).map_err(|error| format!("tolerances.json: {error}"))?;
        let named: BTreeSet<&String> = exact.keys().collect();
        let tolerated: BTreeSet<&String> = tolerances.keys().collect();
        if let Some(name) = named.symmetric_difference(&tolerated).next() {
            return Err(format!("`{name}` is in only one of exact.safetensors and tolerances.json"));
        }
        if let Some(name) = named.into_iter().find(|name| !expected.contains_key(*name)) {
            return Err(format!("expected.safetensors has no `{name}`, but exact.safetensors has"));
        }
        Ok(Self { dtype, autocasts, exact, tolerances })
    }

    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn autocasts(&self) -> bool {
        self.autocasts
    }
}

impl HalfErrors {
    /// Compares a tensor with the one that is called `name`, and keeps its errors.
    ///
    /// # Errors
    /// If dtype or shape differ, or an error is over its limit.
    pub(super) fn compare(
        &mut self,
        reference: &HalfReference,
        subject: Subject,
        name: &str,
        found: &Tensor,
        expected: &Tensor,
    ) -> Result<(), String> {
        if subject.has_dtype && found.dtype() != expected.dtype() {
            return Err(format!("the dtype is {:?}, expected {:?}", found.dtype(), expected.dtype()));
        }
        if found.dims() != expected.dims() {
            return Err(format!("the shape is {:?}, expected {:?}", found.dims(), expected.dims()));
        }
        let (Some(exact), Some(tolerance)) = (reference.exact.get(name), reference.tolerances.get(name))
        else {
            return equal(&elements(found)?, &elements(expected)?);
        };
        if found.dims() != exact.dims() {
            return Err(format!(
                "the shape is {:?}, and that in exact.safetensors {:?}",
                found.dims(),
                exact.dims()
            ));
        }
        let rms = self.within(tolerance, &elements(found)?, &elements(exact)?)?;
        self.in_units.entry(subject.op).or_default().push(quotient(rms, tolerance.unit));
        Ok(())
    }

    /// The root mean square error, if it and the largest error are within their limits.
    fn within(&mut self, tolerance: &HalfTolerance, found: &[f64], exact: &[f64]) -> Result<f64, String> {
        let errors = || found.iter().zip(exact).map(|(found, exact)| (found - exact).abs());
        // `f64::max` would pass over a NaN.
        if let Some(place) = errors().position(|error| !error.is_finite()) {
            return Err(format!("the element {place} is {}, expected {}", found[place], exact[place]));
        }
        let largest = errors().fold(0.0, f64::max);
        let rms = root_mean_square(&errors().collect::<Vec<_>>());
        for (what, error, limit) in
            [("root mean square", rms, tolerance.rms), ("largest", largest, tolerance.max)]
        {
            let share = quotient(error, limit);
            if share > 1.0 {
                return Err(format!(
                    "the {what} error is {error:.3e}, and {limit:.3e} is allowed ({share:.2} of it)"
                ));
            }
            self.share = self.share.max(share);
        }
        Ok(rms)
    }

    /// The largest quotient of an error and its limit; the limits include what all tensors of an op may be off together.
    ///
    /// # Errors
    /// The op whose tensors are off by more, and by how much.
    pub(super) fn finish(self) -> Result<f64, (&'static str, String)> {
        let mut share = self.share;
        for (op, in_units) in self.in_units {
            let together = root_mean_square(&in_units);
            if together > SHARED_LIMIT {
                let count = in_units.len();
                let reason = format!(
                    "the errors of {count} tensors are {together:.3} units together, and {SHARED_LIMIT} are allowed"
                );
                return Err((op, reason));
            }
            share = share.max(together / SHARED_LIMIT);
        }
        Ok(share)
    }
}

/// The error divided by `of`; zero if there is no error, whatever `of` is.
fn quotient(error: f64, of: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / of }
}

fn root_mean_square(values: &[f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of elements is far below 2^53")]
    let count = values.len() as f64;
    (values.iter().map(|value| value * value).sum::<f64>() / count).sqrt()
}

/// An error unless the elements are the same.
fn equal(found: &[f64], expected: &[f64]) -> Result<(), String> {
    let differs = |(found, expected): &(&f64, &f64)| found != expected;
    let different = found.iter().zip(expected).filter(differs).count();
    match found.iter().zip(expected).find(differs) {
        None => Ok(()),
        Some((found, expected)) => Err(format!(
            "an element is {found}, expected exactly {expected}; {different} elements are not equal"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::{DType, Device, Tensor};

    use super::{HalfErrors, HalfReference, HalfTolerance, Subject};

    const FORWARD: Subject = Subject { op: "forward", has_dtype: true };

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    /// A reference in which only `y` has a tolerance.
    fn reference(exact: &[f32], [unit, rms, max]: [f64; 3]) -> HalfReference {
        HalfReference {
            dtype: DType::BF16,
            autocasts: true,
            exact: BTreeMap::from([("y".to_owned(), tensor(exact))]),
            tolerances: BTreeMap::from([("y".to_owned(), HalfTolerance { unit, rms, max })]),
        }
    }

    #[test]
    fn the_root_mean_square_and_the_largest_error_have_limits_of_their_own() {
        let reference = reference(&[0.0; 4], [1.0, 0.5, 0.8]);
        let compare = |values: &[f32]| {
            let (found, mut errors) = (tensor(values), HalfErrors::default());
            errors.compare(&reference, FORWARD, "y", &found, &found).map(|()| errors.finish().unwrap())
        };
        assert!((compare(&[0.75, 0.0, 0.0, 0.0]).unwrap() - 0.9375).abs() < 1e-12);
        assert!(compare(&[0.9, 0.0, 0.0, 0.0]).unwrap_err().starts_with("the largest error is 9.000e-1"));
        assert!(compare(&[0.6; 4]).unwrap_err().starts_with("the root mean square error is 6.000e-1"));
        for value in [f32::NAN, f32::INFINITY] {
            assert!(compare(&[0.0, value, 0.0, 0.0]).unwrap_err().starts_with("the element 1 is"));
        }
    }

    #[test]
    fn the_tensors_of_one_op_are_also_judged_together() {
        let reference = reference(&[0.0], [1.0, 2.0, 2.0]);
        let mut errors = HalfErrors::default();
        for (op, value) in [("forward", 1.2), ("forward", 1.0), ("grads", 1.19)] {
            let (found, subject) = (tensor(&[value]), Subject { op, has_dtype: true });
            errors.compare(&reference, subject, "y", &found, &found).unwrap();
        }
        let (op, reason) = errors.finish().unwrap_err();
        assert_eq!((op, reason.contains("1 tensors are 1.190 units")), ("grads", true), "{reason}");
    }

    #[test]
    fn what_has_no_tolerance_is_equal_and_a_dtype_counts_where_it_is_said() {
        let reference = reference(&[0.0], [1.0; 3]);
        let mut errors = HalfErrors::default();
        let one = tensor(&[1.0]);
        let next = tensor(&[1.0 + f32::EPSILON]);
        assert!(errors.compare(&reference, FORWARD, "other", &one, &one).is_ok());
        assert!(errors.compare(&reference, FORWARD, "other", &next, &one).is_err());
        let half = one.to_dtype(DType::BF16).unwrap();
        let reason = errors.compare(&reference, FORWARD, "other", &half, &one).unwrap_err();
        assert_eq!(reason, "the dtype is BF16, expected F32");
        let free = Subject { has_dtype: false, ..FORWARD };
        assert!(errors.compare(&reference, free, "other", &half, &one).is_ok());
    }
}
