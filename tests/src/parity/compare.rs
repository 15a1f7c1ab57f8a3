//! Compares results with what PEFT computed.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::case::{Case, Reference};
use super::half::HalfErrors;
use crate::close::{LargestErrors, compare};

/// What a result is.
#[derive(Clone, Copy)]
pub(super) struct Subject {
    /// The op that gave it.
    pub(super) op: &'static str,
    /// Whether a case in half precision says its dtype.
    pub(super) has_dtype: bool,
}

/// The errors of the comparisons so far, all of which passed.
#[derive(Default)]
pub(super) struct Errors {
    single: LargestErrors,
    half: HalfErrors,
}

impl Errors {
    /// Compares a tensor with the one that the case calls `name`.
    ///
    /// # Errors
    /// If there is none, or they differ.
    pub(super) fn compare(
        &mut self,
        case: &Case,
        subject: Subject,
        name: &str,
        found: &Tensor,
    ) -> Result<(), String> {
        let Some(expected) = case.expected.get(name) else {
            return Err(format!("expected.safetensors has no `{name}`"));
        };
        let compared = match &case.reference {
            Reference::Single(tolerance) => compare(found, expected, *tolerance).map(|errors| {
                self.single = self.single.max(errors);
            }),
            Reference::Half(reference) => self.half.compare(reference, subject, name, found, expected),
        };
        compared.map_err(|reason| format!("`{name}`: {reason}"))
    }

    /// Compares a set of tensors with those that the case has under `prefix.`: exactly the same keys.
    ///
    /// # Errors
    /// If a key is missing or unexpected, or a tensor differs.
    pub(super) fn compare_all(
        &mut self,
        case: &Case,
        subject: Subject,
        prefix: &str,
        found: &BTreeMap<String, Tensor>,
    ) -> Result<(), String> {
        let dotted = format!("{prefix}.");
        let mut keys = case.expected.keys().filter_map(|name| name.strip_prefix(&dotted));
        if let Some(key) = keys.find(|key| !found.contains_key(*key)) {
            return Err(format!("`{key}` is missing; there are {:?}", found.keys()));
        }
        for (key, tensor) in found {
            let name = format!("{dotted}{key}");
            if !case.expected.contains_key(&name) {
                return Err(format!("`{key}` is not expected"));
            }
            self.compare(case, subject, &name, tensor)?;
        }
        Ok(())
    }

    /// The errors as the report has them.
    ///
    /// # Errors
    /// The op whose errors are too large together, and by how much.
    pub(super) fn finish(self, case: &Case) -> Result<String, (&'static str, String)> {
        match &case.reference {
            Reference::Single(_) => {
                let LargestErrors { max_abs, max_rel } = self.single;
                Ok(format!("max_abs={max_abs:.1e} max_rel={max_rel:.1e}"))
            }
            Reference::Half(_) => self.half.finish().map(|share| format!("share={share:.2}")),
        }
    }
}
