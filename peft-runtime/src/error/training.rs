//! What can be wrong with a step of training, an optimiser, a checkpoint or a training state file.

use std::path::PathBuf;

use super::TensorReport;

/// A step of training, or a checkpoint of it, that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingError {
    /// A tensor that trains got no gradient.
    #[error(
        "`{parameter}` of adapter `{adapter}` has no gradient; was the loss computed with the adapter active and trainable?"
    )]
    NoGradient {
        /// The adapter.
        adapter: String,
        /// The tensor.
        parameter: String,
    },

    /// The loss is NaN or infinite. The step that it belongs to has changed nothing.
    #[error("the loss of step {step} is {loss}{}; {}", of_no_target(*.loss), last_good(.last_checkpoint))]
    NonFiniteLoss {
        /// The step, counted from 1.
        step: u64,
        /// The loss.
        loss: f64,
        /// The newest checkpoint of the run.
        last_checkpoint: Option<PathBuf>,
    },

    /// A gradient is NaN or infinite. The step that it belongs to has changed nothing.
    #[error(
        "in step {step} the gradient of `{parameter}` is NaN or infinite; {}",
        last_good(.last_checkpoint)
    )]
    NonFiniteGradient {
        /// The step, counted from 1.
        step: u64,
        /// The first variable with such a gradient.
        parameter: String,
        /// The newest checkpoint of the run.
        last_checkpoint: Option<PathBuf>,
    },

    /// Tensors that train got no gradient.
    #[error("{report}")]
    MissingGradients {
        /// Their names.
        missing: Vec<String>,
        /// Which they are, why, and what to do.
        report: String,
    },

    /// Gradients are not the slopes of the loss.
    #[error(
        "gradients differ from the slopes of the loss by more than {tolerance}:\n{report}\n\
         an operation of the model has a wrong backward pass, or detaches a part of its input"
    )]
    WrongGradients {
        /// The largest error that was allowed.
        tolerance: f64,
        /// The slopes.
        report: String,
    },

    /// Gradients of half precision cannot be compared with slopes.
    #[error(
        "`{name}` holds {dtype}, whose rounding hides the slopes of a loss; gradients are checked in f32 or f64"
    )]
    HalfVariable {
        /// The variable.
        name: String,
        /// Its type.
        dtype: &'static str,
    },

    /// A loss that has to be the same in each call is not, or is not finite.
    #[error(
        "the loss is {first}, and {second} in the next call; to check gradients it has to stay the same: is dropout on?"
    )]
    ChangingLoss {
        /// The loss of the first call.
        first: f64,
        /// The loss of the second.
        second: f64,
    },

    /// The tensors of a checkpoint are not exactly those of the run that goes on from it.
    #[error("the tensors do not fit {what}{report}")]
    Tensors {
        /// What they should fit.
        what: &'static str,
        /// What is missing, unexpected or has another shape.
        report: Box<TensorReport>,
    },

    /// A checkpoint cannot be written or used.
    #[error("cannot use the checkpoint `{}`: {reason}", .path.display())]
    Checkpoint {
        /// The checkpoint, its folder, or a file in it.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// Groups of variables, or gradients, that an optimiser cannot work with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OptimizerError {
    /// A setting of a group is out of range.
    #[error("`{setting}` of the group `{group}` is {value}; it must be a finite number and at least 0")]
    Setting {
        /// The group.
        group: String,
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: f64,
    },

    /// A variable holds integers.
    #[error("the variable `{name}` holds {dtype}; only floats train")]
    NotFloat {
        /// The variable.
        name: String,
        /// The dtype of its elements.
        dtype: &'static str,
    },

    /// Two variables have the same name.
    #[error("two variables are called `{name}`; each name must be unique")]
    DuplicateName {
        /// The name.
        name: String,
    },

    /// One variable has two names, and would be changed twice in a step.
    #[error("`{first}` and `{second}` are the same variable, which a step would change twice; leave one out")]
    DuplicateVariable {
        /// The name that comes first.
        first: String,
        /// The other one.
        second: String,
    },

    /// The shape of a gradient differs from that of its variable.
    #[error("the gradient of `{parameter}` has shape {found:?}, expected {expected:?}")]
    GradientShape {
        /// The variable.
        parameter: String,
        /// The shape of the variable.
        expected: Vec<usize>,
        /// The shape of the gradient.
        found: Vec<usize>,
    },
}

/// A file that is not the state of a training run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingStateError {
    /// The text is not the JSON that was expected.
    #[error("not a valid training state")]
    Json(#[source] serde_json::Error),

    /// The file has an unknown format.
    #[error("the training state has format {found}, and only {known} is known")]
    Format {
        /// The format of the file.
        found: u32,
        /// The known format.
        known: u32,
    },

    /// The file holds a count higher than a run can reach.
    #[error("`{field}` is {count}, more than a run can reach; it must be at most {most}")]
    Count {
        /// What is counted.
        field: &'static str,
        /// The count.
        count: u64,
        /// The largest count.
        most: u64,
    },
}

/// What a loss of NaN often comes from.
pub(super) fn of_no_target(loss: f64) -> &'static str {
    if loss.is_nan() { ", as is a mean over a batch in which no target counts" } else { "" }
}

/// Where training can resume from.
pub(super) fn last_good(checkpoint: &Option<PathBuf>) -> String {
    match checkpoint {
        Some(path) => format!("the last good checkpoint is `{}`", path.display()),
        None => "there is no checkpoint to go back to".to_owned(),
    }
}
