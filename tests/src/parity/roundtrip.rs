//! The Rust half of `tests/python/roundtrip.py`: loads adapters that PEFT saved, saves adapters for PEFT to load.
//!
//! Both halves work on folders in the format of the parity cases, whose steps load one adapter and compare its output and
//! its tensors. A `roundtrip.json` beside the case says how to make an adapter of the same kind here.

use std::path::{Path, PathBuf};

use candle_core::{Tensor, Var};
use peft_runtime::PeftConfig;
use peft_runtime::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::case::Optimizer;
use super::compare::Errors;
use super::models::{CaseModel, Work, on_base};
use super::session::Session;
use super::steps::said;
use super::{Case, Failure, open, passed};

/// Where an adapter that was loaded is saved again, below the case's folder.
const RESAVED: &str = "resaved";
/// What an adapter made here computed, and of what: below the folder it is saved to.
const EXCHANGED: &str = "exchanged.safetensors";

/// `roundtrip.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    /// The adapter's name.
    adapter: String,
    /// The fields of its `adapter_config.json` that differ from the defaults.
    config: Value,
    /// Whether it is saved as plain LoRA for the base model as it was.
    converted: bool,
    /// The size of the noise on its fresh tensors.
    noise: f64,
    /// Of the steps that follow.
    learning_rate: f64,
    /// How often all its tensors go down the gradient.
    steps: usize,
}

/// Replays the case, and saves the adapter that it loads in the folder `resaved`; the answer is the line of its report.
///
/// # Errors
/// If anything differs from what PEFT computed, or a file cannot be read or written.
pub fn read_case(folder: &Path) -> Result<String, Failure> {
    let case = open(folder)?;
    let errors = on_base(&case, Read(&case)).map_err(|reason| Failure::of_case(&case.name, reason))??;
    Ok(passed(&case, errors))
}

/// Makes an adapter by the case's recipe on the case's base model, and saves it with its output in a folder of the case's
/// name below `out`; the answer is the line of its report.
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
    on_base(case, Write { case, recipe, folder: out.join(&case.name) })?
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

impl Work for Read<'_> {
    type Outcome = Result<Errors, Failure>;

    fn on<M: CaseModel>(self, model: M) -> Self::Outcome {
        let Self(case) = self;
        let mut session = Session::new(case, model);
        let errors = session.replay()?;
        let folder = case.folder.join(RESAVED);
        for adapter in session.model.adapter_names() {
            let saved = said(session.model.save_pretrained(&folder, &adapter));
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

impl Work for Write<'_> {
    type Outcome = Result<(), String>;

    fn on<M: CaseModel>(self, mut model: M) -> Self::Outcome {
        let Self { case, recipe, folder } = self;
        let Recipe { adapter, config, converted, noise, learning_rate, steps } = recipe;
        let config = said(PeftConfig::from_json(&config.to_string()))?;
        said(model.inject_adapter(config.method(), &adapter))?;
        for (seed, (name, var)) in (0..).zip(model.trainable_parameters()) {
            shake(&var, seed, noise).map_err(|error| format!("`{name}`: {error}"))?;
        }
        let mut session = Session::new(case, model);
        said(session.descend(&adapter, Optimizer::Sgd, learning_rate, 0.0, steps))?;
        let output = session.output()?;
        let options = SaveOptions::new().plain_lora(converted);
        said(session.model.save_pretrained_with(&folder, &adapter, options))?;
        exchange(case, output, &folder.join(EXCHANGED))
    }
}

/// Writes what went in and what came out.
fn exchange(case: &Case, output: Tensor, path: &Path) -> Result<(), String> {
    let mut tensors = case.inputs.clone();
    tensors.insert("output".to_owned(), output);
    let bytes = safetensors::serialize(tensors.iter(), None).map_err(|error| error.to_string())?;
    std::fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// Adds uniform noise between −`size` and `size`, the same at every run: candle's generator on the CPU takes no seed.
fn shake(var: &Var, seed: u64, size: f64) -> candle_core::Result<()> {
    let mut noise = SplitMix(seed);
    let values: Vec<f32> = (0..var.elem_count()).map(|_| noise.draw()).collect();
    let noise = (Tensor::from_vec(values, var.shape(), var.device())? * size)?;
    var.set(&(var.as_tensor() + noise)?.detach())
}

/// The SplitMix64 generator: <https://doi.org/10.1145/2714064.2660195>.
struct SplitMix(u64);

impl SplitMix {
    /// A number from −1 up to 1.
    fn draw(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        // 24 bits, which is what a f32 holds.
        (mixed >> 40) as f32 / 8_388_608.0 - 1.0
    }
}
