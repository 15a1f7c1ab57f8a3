//! 20 steps of AdamW on a tiny Llama in bf16, compared with PyTorch's; `python/half_training.py` wrote the fixture.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use peft_runtime::ModelWeights;
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use peft_runtime::train::{AdamW, Schedule, Trainer};

const STEPS: usize = 20;
const LEARNING_RATE: f64 = 5e-3;

/// How much further than PyTorch a run in bf16 may be from float64. Both round what they compute once, in different places, so
/// that their distances from float64 are draws of one distribution; over 20 steps these vary by less than this.
const SLACK: f64 = 1.5;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/half_training")
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The root mean square difference.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (squares / a.len() as f64).sqrt()
}

/// One run: the loss before each step, and the adapter's values after the last.
struct Run {
    losses: Vec<f64>,
    adapter: Vec<f64>,
}

/// What PyTorch computed in that precision, with the adapter's tensors in the order of `keys`.
fn recorded(file: &ModelWeights, name: &str, keys: &[String]) -> Run {
    let read = |key: &str| values(&file.tensor(&format!("{name}.{key}"), &Device::Cpu).unwrap());
    Run { losses: read("losses"), adapter: keys.iter().flat_map(|key| read(key)).collect() }
}

fn trained(file: &ModelWeights, dtype: DType) -> (Run, Vec<String>) {
    let mut model = LlamaModel::from_folder(folder(), dtype, &Device::Cpu).unwrap();
    let options = LoadOptions::new().trainable(true);
    model.load_adapter_with(folder().join("adapter"), "default", options).unwrap();
    let tokens = file.tensor("tokens", &Device::Cpu).unwrap();
    let optimizer = AdamW::for_model(&model, LEARNING_RATE).unwrap();
    let mut trainer = Trainer::new(&model, optimizer, Schedule::constant()).unwrap();
    let mut losses = Vec::new();
    for _ in 0..STEPS {
        let loss = model.loss(&tokens, &tokens).unwrap();
        losses.push(trainer.step(&model, &loss).unwrap().loss);
    }
    let state = model.adapter_state_dict("default").unwrap();
    assert!(state.values().all(|tensor| tensor.dtype() == DType::F32), "adapters train in f32");
    let adapter = state.values().flat_map(values).collect();
    (Run { losses, adapter }, state.into_keys().collect())
}

#[test]
fn twenty_steps_in_bf16_are_as_near_to_float64_as_those_of_pytorch() {
    let file = ModelWeights::open(folder().join("run.safetensors")).unwrap();
    let (ours, keys) = trained(&file, DType::BF16);
    let (theirs, exact) = (recorded(&file, "bf16", &keys), recorded(&file, "f64", &keys));
    assert!(exact.losses[0] - exact.losses[STEPS - 1] > 1.0, "the steps train something");
    for (what, ours, theirs, exact) in [
        ("losses", &ours.losses, &theirs.losses, &exact.losses),
        ("adapter", &ours.adapter, &theirs.adapter, &exact.adapter),
    ] {
        let rounding = distance(theirs, exact);
        let (from_exact, from_pytorch) = (distance(ours, exact), distance(ours, theirs));
        assert!(
            from_exact <= SLACK * rounding,
            "{what}: {from_exact:.2e} from float64, PyTorch {rounding:.2e}"
        );
        // Two sides of a triangle.
        let allowed = (1.0 + SLACK) * rounding;
        assert!(from_pytorch <= allowed, "{what}: {from_pytorch:.2e} from PyTorch, {allowed:.2e} allowed");
    }
}

#[test]
fn in_f32_the_same_steps_are_those_of_float64_on_the_same_numbers() {
    let file = ModelWeights::open(folder().join("run.safetensors")).unwrap();
    let (ours, keys) = trained(&file, DType::F32);
    let exact = recorded(&file, "f64", &keys);
    assert!(distance(&ours.losses, &exact.losses) < 1e-5);
    // AdamW's first step is a whole one however small the gradient is, and the sign of a gradient near zero is rounding.
    assert!(distance(&ours.adapter, &exact.adapter) < 1e-4);
}
