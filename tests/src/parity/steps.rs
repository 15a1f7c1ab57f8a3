//! Each step of a case, on our own implementation.

use std::collections::BTreeMap;

use candle_core::Tensor;
use peft_runtime::Uniform;
use peft_runtime::prelude::*;

use super::case::Step;
use super::compare::Subject;
use super::models::CaseModel;
use super::session::Session;
use super::training::Descent;

impl Step {
    /// The step's word in `case.json`.
    pub(super) fn op(&self) -> &'static str {
        match self {
            Self::Load { .. } => "load",
            Self::SetActive { .. } => "set_active",
            Self::Forward { .. } => "forward",
            Self::ForwardMixed { .. } => "forward_mixed",
            Self::Grads { .. } => "grads",
            Self::Train { .. } => "train",
            Self::Disable {} => "disable",
            Self::Enable {} => "enable",
            Self::Merge { .. } => "merge",
            Self::Unmerge {} => "unmerge",
            Self::BaseWeights { .. } => "base_weights",
            Self::StateDict { .. } => "state_dict",
            Self::Weighted { .. } => "weighted",
            Self::Scale { .. } => "scale",
            Self::Delete { .. } => "delete",
            Self::Fails { .. } => "fails",
        }
    }
}

impl<M: CaseModel> Session<'_, M> {
    /// What the step's results are.
    fn subject(&self, step: &Step) -> Subject {
        let has_dtype = match step {
            Step::Grads { .. } | Step::Train { .. } => false,
            // PEFT holds a sum in f32 or in half, depending on how it is computed.
            Step::StateDict { adapter, .. } => !self.combined.contains(adapter),
            _ => true,
        };
        Subject { op: step.op(), has_dtype }
    }

    /// Does one step; the error says what failed or differs.
    pub(super) fn step(&mut self, step: &Step) -> Result<(), String> {
        let subject = self.subject(step);
        match step {
            Step::Load { adapter } => self.load(adapter),
            Step::SetActive { adapters } => {
                let names: Vec<&str> = adapters.iter().map(String::as_str).collect();
                describe_error(self.model.set_adapters(&names))
            }
            Step::Forward { expect } => {
                let output = self.output()?;
                self.compare(subject, expect, &output)
            }
            Step::ForwardMixed { adapter_names, expect } => {
                self.forward_mixed(subject, adapter_names, expect.as_deref())
            }
            Step::Grads { expect } => self.grads(subject, expect),
            Step::Train { optimizer, lr, weight_decay, steps, expect } => {
                let descent =
                    Descent { optimizer: *optimizer, lr: *lr, weight_decay: *weight_decay, steps: *steps };
                self.train(subject, descent, expect)
            }
            Step::Disable {} => {
                self.model.disable_adapters();
                Ok(())
            }
            Step::Enable {} => {
                self.model.enable_adapters();
                Ok(())
            }
            Step::Merge { adapters, safe } => {
                let options = match adapters {
                    Some(names) => MergeOptions::adapters(names.clone()),
                    None => MergeOptions::active(),
                };
                describe_error(self.model.merge_adapters(&options.check_finite(*safe)))
            }
            Step::Unmerge {} => describe_error(self.model.unmerge_adapters()),
            Step::BaseWeights { expect } => self.base_weights(subject, expect),
            Step::StateDict { adapter, expect } => {
                let state = describe_error(self.model.adapter_state_dict(adapter))?;
                expect.as_ref().map_or(Ok(()), |expect| self.compare_all(subject, expect, &state))
            }
            Step::Weighted { name, adapters, weights, .. } => {
                if adapters.len() != weights.len() {
                    return Err(format!("{} adapters and {} weights", adapters.len(), weights.len()));
                }
                let parts = adapters.iter().map(String::as_str).zip(weights.iter().copied());
                let options = describe_error(combine_options(step))?;
                let parts: Vec<(&str, f64)> = parts.collect();
                describe_error(self.model.add_weighted_adapter(&parts, name, &options).map(|_| ()))?;
                self.combined.push(name.clone());
                // Once active, it trains like any other.
                describe_error(self.model.set_trainable(name, true))
            }
            Step::Scale { adapter, factor } => describe_error(self.model.scale_adapter(adapter, *factor)),
            Step::Delete { adapter } => describe_error(self.model.delete_adapter(adapter)),
            Step::Fails { step, contains } => self.fails(step, contains),
        }
    }

    fn load(&mut self, adapter: &str) -> Result<(), String> {
        let folder = self.case.adapter_folder(adapter);
        let options = LoadOptions::new().trainable(true).autocast_adapter_dtype(self.case.autocasts());
        describe_error(self.model.load_adapter_with(folder, adapter, options).map(|_| ()))
    }

    fn forward_mixed(
        &mut self,
        subject: Subject,
        rows: &[String],
        expect: Option<&str>,
    ) -> Result<(), String> {
        let output = describe_error(self.model.with_adapter_rows(rows, |model| self.forward(model)))?;
        let output = output.map_err(|error| error.to_string())?;
        expect.map_or(Ok(()), |expect| self.compare(subject, expect, &output))
    }

    fn base_weights(&mut self, subject: Subject, expect: &str) -> Result<(), String> {
        let checkpoint = self.case.base()?;
        // A full copy that acts is not one of the base weights, so that it may not act here.
        let status = self.model.model_status();
        let was_enabled = !status.is_ok_and(|status| status.enabled == Uniform::Everywhere(false));
        self.model.disable_adapters();
        let mut weights: BTreeMap<String, Tensor> = self.model.merged_state_dict();
        if was_enabled {
            self.model.enable_adapters();
        }
        // Tied weights are stored only under their first name.
        weights.retain(|name, _| checkpoint.names().any(|stored| stored == name));
        self.compare_all(subject, expect, &weights)
    }
}

/// The options of a `weighted` step.
fn combine_options(step: &Step) -> peft_runtime::Result<CombineOptions> {
    // PEFT lets start again what it does not combine.
    let mut options = CombineOptions::default().with_restarts(true);
    if let Step::Weighted { combination_type, density, majority_sign_method, svd_rank, .. } = step {
        if let Some(name) = combination_type {
            options = CombineOptions::new(name.parse()?).with_restarts(true);
        }
        if let Some(density) = density {
            options = options.with_density(*density);
        }
        if let Some(method) = majority_sign_method {
            options = options.with_majority_sign(method.parse()?);
        }
        if let Some(rank) = svd_rank {
            options = options.with_svd_rank(*rank);
        }
    }
    Ok(options)
}

/// The text of an error with that of all its sources.
pub(super) fn describe_error<T>(result: peft_runtime::Result<T>) -> Result<T, String> {
    result.map_err(|error| error.chain())
}
