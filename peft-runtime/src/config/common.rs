//! What the configs of all methods share.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::unset::{truth, unless_unset};

/// A field of a config, under its name in the file, and what is wrong with it.
pub(crate) type ConfigFault = (&'static str, String);

/// The version of PEFT whose files and semantics these configs follow.
const PEFT_VERSION: &str = "0.21.2";

/// The task types PEFT knows.
const TASK_TYPES: [&str; 6] =
    ["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"];

/// The fields that describe an adapter without changing what it computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CommonFields {
    /// The task, one of PEFT's task types (`CAUSAL_LM`, `SEQ_CLS`, …).
    #[serde(default)]
    pub task_type: Option<String>,
    /// The class of the base model, for PEFT's automatic loading.
    #[serde(default)]
    pub auto_mapping: Option<Value>,
    /// The base model: a folder or a hub id.
    #[serde(default, deserialize_with = "unless_unset")]
    pub base_model_name_or_path: Option<String>,
    /// The revision of the base model.
    #[serde(default, deserialize_with = "unless_unset")]
    pub revision: Option<String>,
    /// Always true in files; it says nothing about the adapter.
    #[serde(default = "yes", deserialize_with = "truth", serialize_with = "as_true")]
    pub inference_mode: bool,
    /// The version of PEFT that wrote the file; kept when the config is written again.
    #[serde(default = "peft_version", deserialize_with = "unless_unset")]
    pub peft_version: Option<String>,
    /// Keys of the file that nothing here reads; they are written back as they were.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

fn as_true<S: Serializer>(_: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bool(true)
}

fn peft_version() -> Option<String> {
    Some(PEFT_VERSION.to_owned())
}

impl Default for CommonFields {
    fn default() -> Self {
        Self {
            task_type: None,
            auto_mapping: None,
            base_model_name_or_path: None,
            revision: None,
            inference_mode: true,
            peft_version: peft_version(),
            unknown: BTreeMap::new(),
        }
    }
}

impl CommonFields {
    pub(crate) fn faults(&self) -> Vec<ConfigFault> {
        match &self.task_type {
            Some(task) if !TASK_TYPES.contains(&task.as_str()) => {
                vec![("task_type", format!("`{task}` is not one of {}", TASK_TYPES.join(", ")))]
            }
            _ => Vec::new(),
        }
    }
}

/// Which biases of the base model train together with the adapter.
///
/// The biases are the base model's own, not the adapter's: they stay changed when the adapter is disabled or deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// No bias trains.
    #[default]
    None,
    /// Every bias of the model trains.
    All,
    /// The biases of the adapted layers train.
    LoraOnly,
}

/// Writes a number without a fraction as an integer, as PEFT's files do.
pub(crate) fn as_number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    const LARGEST_EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= LARGEST_EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "the value is an integer in range")]
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f64(*value)
    }
}

/// What is wrong with a probability, which must be below one, if anything.
pub(crate) fn probability_fault(field: &'static str, value: f64) -> Option<ConfigFault> {
    let valid = (0.0..1.0).contains(&value);
    (!valid).then(|| (field, format!("the probability is {value}; it must be at least 0 and below 1")))
}

/// No layer has a larger rank.
const LARGEST_RANK: usize = 1 << 20;

/// What is wrong with a rank, which must be positive, if anything.
pub(crate) fn rank_fault(field: &'static str, rank: usize) -> Option<ConfigFault> {
    match rank {
        0 => Some((field, "the rank is 0; it must be at least 1".to_owned())),
        rank => large_rank_fault(field, rank),
    }
}

/// What is wrong with a rank that is too large to work with; `None` for any other.
pub(crate) fn large_rank_fault(field: &'static str, rank: usize) -> Option<ConfigFault> {
    let reason = || format!("the rank is {rank}; it must be at most {LARGEST_RANK}");
    (rank > LARGEST_RANK).then(|| (field, reason()))
}

/// What is wrong with a number, which must be finite, if anything.
pub(crate) fn finite_fault(field: &'static str, value: f64) -> Option<ConfigFault> {
    (!value.is_finite()).then(|| (field, format!("{value} is not a finite number")))
}

/// The default of a switch that is on.
pub(crate) fn yes() -> bool {
    true
}
