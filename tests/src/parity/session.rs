//! A model in the middle of a case.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::case::Step;
use super::compare::{Errors, Subject};
use super::models::{CaseModel, ModelTask};
use super::steps::describe_error;
use super::{Case, Failure};
use crate::fingerprint::Fingerprint;

/// A case and its model in the state that the steps so far left it in.
pub(super) struct Session<'c, M> {
    pub(super) case: &'c Case,
    pub(super) model: M,
    errors: Errors,
    /// The adapters that `weighted` made.
    pub(super) combined: Vec<String>,
}

/// Does all steps of a case; returns what the report says of the errors on the way.
pub(super) struct Replay<'c>(pub(super) &'c Case);

impl ModelTask for Replay<'_> {
    type Outcome = Result<String, Failure>;

    fn run<M: CaseModel>(self, model: M) -> Self::Outcome {
        Session::new(self.0, model).replay()
    }
}

impl<'c, M: CaseModel> Session<'c, M> {
    pub(super) fn new(case: &'c Case, model: M) -> Self {
        Self { case, model, errors: Errors::default(), combined: Vec::new() }
    }

    /// Does all steps; returns what the report says of the errors on the way.
    pub(super) fn replay(&mut self) -> Result<String, Failure> {
        let case = self.case;
        let failure = |number: usize, op: &str, reason: String| Failure {
            name: case.name.clone(),
            step: Some((number, op.to_owned())),
            reason,
        };
        for (number, step) in case.steps.iter().enumerate() {
            self.step(step).map_err(|reason| failure(number, step.op(), reason))?;
        }
        let last = |op: &str| case.steps.iter().rposition(|step| step.op() == op).unwrap_or_default();
        std::mem::take(&mut self.errors).finish(case).map_err(|(op, reason)| failure(last(op), op, reason))
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

    pub(super) fn compare(&mut self, subject: Subject, name: &str, found: &Tensor) -> Result<(), String> {
        self.errors.compare(self.case, subject, name, found)
    }

    pub(super) fn compare_all(
        &mut self,
        subject: Subject,
        prefix: &str,
        found: &BTreeMap<String, Tensor>,
    ) -> Result<(), String> {
        self.errors.compare_all(self.case, subject, prefix, found)
    }

    /// The inner step must fail with these words in its error, and leave the model as it was.
    pub(super) fn fails(&mut self, step: &Step, contains: &[String]) -> Result<(), String> {
        let before = describe_error(Fingerprint::of(&self.model))?;
        let Err(text) = self.step(step) else { return Err(format!("`{}` did not fail", step.op())) };
        let lower = text.to_lowercase();
        if let Some(word) = contains.iter().find(|word| !lower.contains(&word.to_lowercase())) {
            return Err(format!("the error does not say `{word}`: {text}"));
        }
        let after = describe_error(Fingerprint::of(&self.model))?;
        match before.changes(&after).as_slice() {
            [] => Ok(()),
            changes => Err(format!("the failed step changed {}", changes.join(", "))),
        }
    }
}
