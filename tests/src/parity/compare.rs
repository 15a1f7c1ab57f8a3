//! Holds results against what PEFT computed.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::case::Tolerance;

/// The largest errors seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Errors {
    /// The largest absolute error.
    pub max_abs: f64,
    /// The largest error relative to the expected value, where that is not tiny.
    pub max_rel: f64,
}

/// Below this, a value's relative error says nothing.
const TINY: f64 = 1e-3;

impl Errors {
    /// Compares a tensor with the expected one and keeps the largest errors.
    ///
    /// # Errors
    /// If the shapes differ or an entry is out of tolerance.
    pub(super) fn compare(
        &mut self,
        key: &str,
        found: &Tensor,
        expected: &Tensor,
        tolerance: Tolerance,
    ) -> Result<(), String> {
        if found.dims() != expected.dims() {
            return Err(format!("`{key}` has shape {:?}, expected {:?}", found.dims(), expected.dims()));
        }
        let values = |tensor: &Tensor| -> candle_core::Result<Vec<f64>> {
            if tensor.elem_count() == 0 {
                return Ok(Vec::new());
            }
            tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()
        };
        let (found, expected) = match (values(found), values(expected)) {
            (Ok(found), Ok(expected)) => (found, expected),
            (Err(error), _) | (_, Err(error)) => return Err(format!("`{key}`: {error}")),
        };
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = (found - expected).abs();
            let allowed = tolerance.atol + tolerance.rtol * expected.abs();
            // A NaN is within no tolerance.
            if error.is_nan() || error > allowed {
                return Err(format!("`{key}`[{index}] is {found}, expected {expected} (off by {error:.2e})"));
            }
            self.max_abs = self.max_abs.max(error);
            if expected.abs() > TINY {
                self.max_rel = self.max_rel.max(error / expected.abs());
            }
        }
        Ok(())
    }

    /// Compares a set of tensors with the expected ones under `prefix.`: exactly the same keys.
    ///
    /// # Errors
    /// If a key is missing or too much, or a tensor differs.
    pub(super) fn compare_all(
        &mut self,
        prefix: &str,
        found: &BTreeMap<String, Tensor>,
        expected: &BTreeMap<String, Tensor>,
        tolerance: Tolerance,
    ) -> Result<(), String> {
        let dotted = format!("{prefix}.");
        let expected: BTreeMap<&str, &Tensor> =
            expected.iter().filter_map(|(key, tensor)| Some((key.strip_prefix(&dotted)?, tensor))).collect();
        if let Some(key) = expected.keys().find(|key| !found.contains_key(**key)) {
            return Err(format!("`{key}` is missing; there are {:?}", found.keys()));
        }
        for (key, tensor) in found {
            match expected.get(key.as_str()) {
                Some(expected) => self.compare(key, tensor, expected, tolerance)?,
                None => return Err(format!("`{key}` is not expected")),
            }
        }
        Ok(())
    }
}
