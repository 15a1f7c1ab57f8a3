//! The Rust half of `tests/python/roundtrip.py`: loads adapters that PEFT saved, saves adapters for PEFT to load.
//!
//! Both halves work on folders in the format of the parity cases, whose steps load one adapter and compare its output and
//! its tensors. A `roundtrip.json` in the folder of the case says how to make an adapter of the same kind here.

use std::path::{Path, PathBuf};

use candle_core::{Tensor, Var};
use peft_runtime::PeftConfig;
use peft_runtime::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::case::Optimizer;
use super::models::{CaseModel, ModelTask, with_base_model};
use super::session::Session;
use super::steps::describe_error;
use super::training::Descent;
use super::{Case, Failure, open, passed};
use crate::tensors::Generator;

/// Where a loaded adapter is saved again, below the case's folder.
const RESAVED: &str = "resaved";
/// The inputs and the output of an adapter that was made here, in the folder where it is saved.
const EXCHANGED: &str = "exchanged.safetensors";

/// `roundtrip.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    /// The adapter's name.
    adapter: String,
    /// The fields of its `adapter_config.json` that differ from the defaults.
    config: Value,
    /// Whether it is saved as plain LoRA for the original base model.
    converted: bool,
    /// The size of the noise on its fresh tensors.
    noise: f64,
    /// The learning rate of the steps that follow.
    learning_rate: f64,
    /// The number of gradient-descent steps for all its tensors.
    steps: usize,
}

/// Replays the case, saves the adapter that it loads in the folder `resaved`, and returns the line of its report.
///
/// # Errors
/// If anything differs from what PEFT computed, or a file cannot be read or written.
pub fn read_case(folder: &Path) -> Result<String, Failure> {
    let case = open(folder)?;
    let errors =
        with_base_model(&case, Read(&case)).map_err(|reason| Failure::of_case(&case.name, reason))??;
    Ok(passed(&case, &errors))
}

/// Makes an adapter by the case's recipe on the case's base model, saves it with its output in a folder with the case's name
/// below `out`, and returns the line of its report.
///
/// # Errors
/// If the adapter cannot be made or trained, or a file cannot be read or written.
pub fn write_case(folder: &Path, out: &Path) -> Result<String, Failure> {
    let case = open(folder)?;
    write(&case, folder, out).map_err(|reason| failure(&case, 0, "write", reason))?;
    Ok(format!("ok {}", case.name))
}

fn write(case: &Case, folder: &Path, out: &Path) -> Result<(), String> {
    let recipe = recipe(folder)?;
    with_base_model(case, Write { case, recipe, folder: out.join(&case.name) })?
}

fn recipe(folder: &Path) -> Result<Recipe, String> {
    let text = std::fs::read_to_string(folder.join("roundtrip.json"));
    let text = text.map_err(|error| format!("roundtrip.json: {error}"))?;
    serde_json::from_str(&text).map_err(|error| format!("roundtrip.json: {error}"))
}

fn failure(case: &Case, number: usize, op: &str, reason: String) -> Failure {
    Failure { name: case.name.clone(), step: Some((number, op.to_owned())), reason }
}

struct Read<'c>(&'c Case);

impl ModelTask for Read<'_> {
    type Outcome = Result<String, Failure>;

    fn run<M: CaseModel>(self, model: M) -> Self::Outcome {
        let Self(case) = self;
        let mut session = Session::new(case, model);
        let errors = session.replay()?;
        let folder = case.folder.join(RESAVED);
        for adapter in session.model.adapter_names() {
            let saved = describe_error(session.model.save_pretrained(&folder, &adapter));
            saved.map_err(|reason| failure(case, case.steps.len(), "save", reason))?;
        }
        Ok(errors)
    }
}

struct Write<'c> {
    case: &'c Case,
    recipe: Recipe,
    folder: PathBuf,
}

impl ModelTask for Write<'_> {
    type Outcome = Result<(), String>;

    fn run<M: CaseModel>(self, mut model: M) -> Self::Outcome {
        let Self { case, recipe, folder } = self;
        let Recipe { adapter, config, converted, noise, learning_rate, steps } = recipe;
        let config = describe_error(PeftConfig::from_json(&config.to_string()))?;
        describe_error(model.inject_adapter(config.method(), &adapter))?;
        for (seed, (name, var)) in (0..).zip(model.trainable_parameters()) {
            add_noise(&var, seed, noise).map_err(|error| format!("`{name}`: {error}"))?;
        }
        let mut session = Session::new(case, model);
        let optimizer = Optimizer::Sgd;
        let descent = Descent { optimizer, lr: learning_rate, weight_decay: 0.0, steps };
        describe_error(session.descend(&adapter, descent))?;
        let output = session.output()?;
        let options = SaveOptions::new().plain_lora(converted);
        describe_error(session.model.save_pretrained_with(&folder, &adapter, options))?;
        write_exchanged(case, output, &folder.join(EXCHANGED))
    }
}

/// Writes the inputs and the output.
fn write_exchanged(case: &Case, output: Tensor, path: &Path) -> Result<(), String> {
    let mut tensors = case.inputs.clone();
    tensors.insert("output".to_owned(), output);
    let bytes = safetensors::serialize(tensors.iter(), None).map_err(|error| error.to_string())?;
    std::fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// Adds uniform noise between −`size` and `size`, the same in every run.
fn add_noise(var: &Var, seed: u64, size: f64) -> candle_core::Result<()> {
    let noise = Generator::from_seed(seed).uniform(var.shape(), size, var.dtype())?;
    var.set(&(var.as_tensor() + noise)?.detach())
}
