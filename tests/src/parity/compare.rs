//! Compares results with what PEFT computed.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::close::{LargestErrors, Tolerance, compare};

impl LargestErrors {
    /// Compares a tensor with the expected one and keeps the largest errors.
    ///
    /// # Errors
    /// If the shapes differ or an element is out of tolerance.
    pub(super) fn compare(
        &mut self,
        key: &str,
        found: &Tensor,
        expected: &Tensor,
        tolerance: Tolerance,
    ) -> Result<(), String> {
        let errors = compare(found, expected, tolerance).map_err(|reason| format!("`{key}`: {reason}"))?;
        *self = self.max(errors);
        Ok(())
    }

    /// Compares a set of tensors with the expected ones under `prefix.`: exactly the same keys.
    ///
    /// # Errors
    /// If a key is missing or unexpected, or a tensor differs.
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
