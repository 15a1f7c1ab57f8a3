//! What the library says about an adapter's tensors together with its config, for the methods that it knows.

use std::path::Path;

use peft_runtime::error::{Fault, TensorReport};
use peft_runtime::{BaseWeights, Error, StoredAdapter};

/// What the library says; nothing about an adapter that fits its config, and about one that is not supported.
#[derive(Debug, Default)]
pub struct Judgement {
    /// Why the tensors are not what the config says.
    pub inconsistent: Option<String>,
    /// The keys, without prefix, of tensors that are on modules which the config does not select.
    pub unexpected: Vec<String>,
    /// Why the config selects no module of the adapter.
    pub selects_nothing: Option<String>,
}

impl Judgement {
    /// Reads the adapter; the base model is used only where the keys say too little by themselves.
    pub fn of(path: &Path, base: Option<&BaseWeights>) -> Self {
        let read = |adapter: StoredAdapter| adapter.layers().map(drop);
        let first = StoredAdapter::open(path).and_then(read);
        let second = match (&first, base) {
            (Err(error), Some(base)) if needs_model(error) => {
                StoredAdapter::open_for(path, base).and_then(read)
            }
            _ => first,
        };
        second.err().map(|error| Self::from_error(&error)).unwrap_or_default()
    }

    fn from_error(error: &Error) -> Self {
        match innermost(error) {
            Error::Tensors { report, .. } => Self::from_report(report, error),
            Error::Plan { faults, .. } if faults.iter().all(is_about_targets) => {
                let reasons: Vec<String> = faults.iter().map(Fault::to_string).collect();
                Self { selects_nothing: Some(reasons.join("; ")), ..Self::default() }
            }
            _ => Self::default(),
        }
    }

    fn from_report(report: &TensorReport, error: &Error) -> Self {
        let inconsistent = (!report.mismatched.is_empty()).then(|| error.chain());
        Self { inconsistent, unexpected: report.unexpected.clone(), selects_nothing: None }
    }
}

fn innermost(error: &Error) -> &Error {
    match error {
        Error::InFile { source, .. } => innermost(source),
        error => error,
    }
}

/// Whether the adapter can be read with a model only.
fn needs_model(error: &Error) -> bool {
    matches!(innermost(error), Error::Unsupported { .. })
}

fn is_about_targets(fault: &Fault) -> bool {
    matches!(fault, Fault::NoTargets | Fault::UnmatchedTarget { .. } | Fault::NothingMatched { .. })
}
