//! The files of a case.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use peft_runtime::ModelWeights;
use serde::Deserialize;
use serde_json::Value;

use super::half::HalfReference;
use crate::close::Tolerance;

/// A golden scenario.
pub struct Case {
    /// Its name.
    pub name: String,
    /// The base model's architecture.
    pub model: String,
    /// The base model's sizes.
    pub model_config: Value,
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// What results are compared with, apart from those of PEFT.
    pub(super) reference: Reference,
    pub(super) folder: PathBuf,
    pub(super) inputs: BTreeMap<String, Tensor>,
    pub(super) expected: BTreeMap<String, Tensor>,
}

/// How far a result may be off.
pub(super) enum Reference {
    /// By this much from what PEFT computed in f32.
    Single(Tolerance),
    /// By as much as rounding to half precision costs, from what float64 gives.
    Half(HalfReference),
}

/// The tolerance of a case that names none.
const DEFAULT_TOLERANCE: Tolerance = Tolerance { atol: 2e-5, rtol: 2e-4 };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseFile {
    name: String,
    model: String,
    model_config: Value,
    steps: Vec<Step>,
    tolerance: Option<Tolerance>,
    dtype: Option<HalfType>,
    autocast_adapter_dtype: Option<bool>,
}

/// The precision of a case that is not in f32.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum HalfType {
    Bf16,
    F16,
}

impl From<HalfType> for DType {
    fn from(half: HalfType) -> Self {
        match half {
            HalfType::Bf16 => Self::BF16,
            HalfType::F16 => Self::F16,
        }
    }
}

/// One step of a case.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Loads and injects an adapter.
    Load { adapter: String },
    /// Activates exactly these adapters.
    SetActive { adapters: Vec<String> },
    /// The output for `x`.
    Forward { expect: String },
    /// The output with an adapter for each row.
    ForwardMixed { adapter_names: Vec<String>, expect: Option<String> },
    /// The gradients of `sum(output · probe)`.
    Grads { expect: String },
    /// Steps of an optimiser on the squared error.
    Train { optimizer: Optimizer, lr: f64, weight_decay: f64, steps: usize, expect: String },
    /// Disables adapters.
    Disable {},
    /// Enables adapters.
    Enable {},
    /// Merges adapters into the base weights.
    Merge {
        adapters: Option<Vec<String>>,
        #[serde(default)]
        safe: bool,
    },
    /// Unmerges adapters.
    Unmerge {},
    /// The base weights in use.
    BaseWeights { expect: String },
    /// The tensors that PEFT saves.
    StateDict { adapter: String, expect: Option<String> },
    /// Combines adapters into a new one.
    Weighted {
        name: String,
        adapters: Vec<String>,
        weights: Vec<f64>,
        combination_type: Option<String>,
        density: Option<f64>,
        majority_sign_method: Option<String>,
        svd_rank: Option<usize>,
    },
    /// Multiplies an adapter's scaling.
    Scale { adapter: String, factor: f64 },
    /// Deletes an adapter.
    Delete { adapter: String },
    /// The inner step has to fail and change nothing.
    Fails {
        step: Box<Step>,
        #[serde(default)]
        contains: Vec<String>,
    },
}

/// torch's optimisers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// Without momentum.
    Sgd,
    /// With the default betas and eps.
    Adamw,
}

impl Case {
    /// Reads the files of a case.
    ///
    /// # Errors
    /// If one is missing or malformed.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(folder.join("case.json"))
            .map_err(|error| format!("case.json: {error}"))?;
        let file: CaseFile = serde_json::from_str(&text).map_err(|error| format!("case.json: {error}"))?;
        let CaseFile { name, model, model_config, steps, tolerance, dtype, autocast_adapter_dtype } = file;
        let inputs = read_tensors(&folder.join("inputs.safetensors"))?;
        let expected = read_tensors(&folder.join("expected.safetensors"))?;
        let reference = match (dtype, tolerance, autocast_adapter_dtype) {
            (None, tolerance, None) => Reference::Single(tolerance.unwrap_or(DEFAULT_TOLERANCE)),
            (Some(dtype), None, autocasts) => Reference::Half(HalfReference::read(
                folder,
                dtype.into(),
                autocasts.unwrap_or(true),
                &expected,
            )?),
            (None, _, Some(_)) => {
                return Err("case.json: `autocast_adapter_dtype` needs a `dtype`".to_owned());
            }
            (Some(_), Some(_), _) => {
                return Err(
                    "case.json: a case with a `dtype` has no `tolerance` but tolerances.json".to_owned()
                );
            }
        };
        Ok(Self { name, model, model_config, steps, reference, folder: folder.to_owned(), inputs, expected })
    }

    /// The dtype of the base model.
    pub(super) fn dtype(&self) -> DType {
        match &self.reference {
            Reference::Single(_) => DType::F32,
            Reference::Half(half) => half.dtype(),
        }
    }

    /// Whether adapters are held in f32 on a base model in half precision.
    pub(super) fn autocasts(&self) -> bool {
        match &self.reference {
            Reference::Single(_) => true,
            Reference::Half(half) => half.autocasts(),
        }
    }

    pub(super) fn base(&self) -> Result<ModelWeights, String> {
        ModelWeights::open(self.folder.join("base.safetensors")).map_err(|error| error.chain())
    }

    pub(super) fn adapter_folder(&self, adapter: &str) -> PathBuf {
        self.folder.join("adapters").join(adapter)
    }

    pub(super) fn input(&self, name: &str) -> Result<&Tensor, String> {
        self.inputs.get(name).ok_or_else(|| format!("inputs.safetensors has no `{name}`"))
    }
}

pub(super) fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>, String> {
    let file = ModelWeights::open(path).map_err(|error| error.chain())?;
    let read =
        |name: &str| Ok((name.to_owned(), file.tensor(name, &Device::Cpu).map_err(|e| e.to_string())?));
    file.names().map(read).collect()
}
