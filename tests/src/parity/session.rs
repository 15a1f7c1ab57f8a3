//! A model in the middle of a case.

use std::collections::BTreeMap;

use candle_core::Tensor;
use peft_runtime::prelude::*;

use super::case::Step;
use super::compare::Errors;
use super::models::{CaseModel, Work};
use super::{Case, Failure};

/// A case and its model as the steps so far left it.
pub(super) struct Session<'c, M> {
    pub(super) case: &'c Case,
    pub(super) model: M,
    pub(super) errors: Errors,
}

/// Does all steps of a case; the largest errors on the way.
pub(super) struct Replay<'c>(pub(super) &'c Case);

impl Work for Replay<'_> {
    type Outcome = Result<Errors, Failure>;

    fn on<M: CaseModel>(self, model: M) -> Self::Outcome {
        Session::new(self.0, model).replay()
    }
}

/// Everything that a failed step must leave as it was.
#[derive(Debug)]
struct Fingerprint {
    adapters: Vec<String>,
    active: Vec<String>,
    tree: String,
    summary: String,
    tensors: BTreeMap<String, Tensor>,
}

impl<'c, M: CaseModel> Session<'c, M> {
    pub(super) fn new(case: &'c Case, model: M) -> Self {
        Self { case, model, errors: Errors::default() }
    }

    /// Does all steps; the largest errors on the way.
    pub(super) fn replay(&mut self) -> Result<Errors, Failure> {
        let case = self.case;
        for (number, step) in case.steps.iter().enumerate() {
            self.step(step).map_err(|reason| Failure {
                name: case.name.clone(),
                step: Some((number, step.op().to_owned())),
                reason,
            })?;
        }
        Ok(self.errors)
    }

    pub(super) fn output(&self) -> Result<Tensor, String> {
        self.forward(&self.model).map_err(|error| error.to_string())
    }

    pub(super) fn forward(&self, model: &M) -> candle_core::Result<Tensor> {
        let x = self.case.inputs.get("x");
        match x {
            Some(x) => model.output(x, self.case.inputs.get("attention_mask")),
            None => candle_core::bail!("inputs.safetensors has no `x`"),
        }
    }

    pub(super) fn compare(&mut self, key: &str, found: &Tensor) -> Result<(), String> {
        let Some(expected) = self.case.expected.get(key) else {
            return Err(format!("expected.safetensors has no `{key}`"));
        };
        self.errors.compare(key, found, expected, self.case.tolerance)
    }

    pub(super) fn compare_all(
        &mut self,
        prefix: &str,
        found: &BTreeMap<String, Tensor>,
    ) -> Result<(), String> {
        self.errors.compare_all(prefix, found, &self.case.expected, self.case.tolerance)
    }

    /// The inner step must fail with these words in its text, and leave the model as it was.
    pub(super) fn fails(&mut self, step: &Step, contains: &[String]) -> Result<(), String> {
        let before = self.fingerprint()?;
        let Err(text) = self.step(step) else { return Err(format!("`{}` did not fail", step.op())) };
        let lower = text.to_lowercase();
        if let Some(word) = contains.iter().find(|word| !lower.contains(&word.to_lowercase())) {
            return Err(format!("the error does not say `{word}`: {text}"));
        }
        let after = self.fingerprint()?;
        before.check_same(&after)
    }

    fn fingerprint(&self) -> Result<Fingerprint, String> {
        let adapters = self.model.adapter_names();
        let mut tensors = self.model.merged_state_dict();
        for adapter in &adapters {
            let state = self.model.adapter_state_dict(adapter).map_err(|error| error.chain())?;
            tensors.extend(state.into_iter().map(|(key, tensor)| (format!("{adapter}/{key}"), tensor)));
        }
        for (key, tensor) in self.model.base_state_dict() {
            tensors.insert(format!("base/{key}"), tensor);
        }
        Ok(Fingerprint {
            adapters,
            active: self.model.active_adapters(),
            tree: self.model.module_tree(),
            summary: self.model.trainable_summary(),
            tensors,
        })
    }
}

impl Fingerprint {
    fn check_same(&self, other: &Self) -> Result<(), String> {
        let changed = |what: &str| Err(format!("the failed step changed {what}"));
        if self.adapters != other.adapters || self.active != other.active {
            return changed("the adapters");
        }
        if self.tree != other.tree || self.summary != other.summary {
            return changed("the modules");
        }
        if !self.tensors.keys().eq(other.tensors.keys()) {
            return changed("the tensors");
        }
        for (key, tensor) in &self.tensors {
            if !same_values(tensor, &other.tensors[key]).map_err(|error| error.to_string())? {
                return changed(key);
            }
        }
        Ok(())
    }
}

/// Whether two tensors hold the same bits.
fn same_values(a: &Tensor, b: &Tensor) -> candle_core::Result<bool> {
    let bits = |tensor: &Tensor| -> candle_core::Result<Vec<u32>> {
        Ok(tensor
            .flatten_all()?
            .to_dtype(candle_core::DType::F32)?
            .to_vec1::<f32>()?
            .into_iter()
            .map(f32::to_bits)
            .collect())
    };
    Ok(a.dims() == b.dims() && (a.elem_count() == 0 || bits(a)? == bits(b)?))
}
