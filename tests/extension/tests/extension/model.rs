//! A model with the custom layer kind, and adapters of the custom method on it.

use candle_core::Tensor;
use candle_nn::{Linear, Module};
use peft_extension::{CountedLinear, ScaleConfig, ScaleSettings};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::method::register;
use peft_runtime::prelude::*;
use peft_tests::tensors::{random, randomise};
use tempfile::TempDir;

#[derive(Clone, Injectable)]
pub struct Model {
    pub own: Adapted<CountedLinear>,
    theirs: Adapted<Linear>,
    pub plain: CountedLinear,
}

fn counted(inputs: usize, outputs: usize) -> CountedLinear {
    CountedLinear::new(random(&[outputs, inputs]), random(outputs))
}

impl Model {
    pub fn new() -> Self {
        Self {
            own: counted(5, 6).into(),
            theirs: Linear::new(random(&[4, 6]), Some(random(4))).into(),
            plain: counted(4, 3),
        }
    }

    /// The output `[batch, 3]` for an input `[batch, 5]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let hidden = self.theirs.forward(&self.own.forward(x).unwrap()).unwrap();
        self.plain.forward(&hidden).unwrap()
    }

    pub fn loss(&self, x: &Tensor) -> Tensor {
        self.forward(x).sqr().unwrap().mean_all().unwrap()
    }

    /// A folder with the base model's weights.
    pub fn save(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let weights = self.base_state_dict().into_iter().collect();
        candle_core::safetensors::save(&weights, folder.path().join("model.safetensors")).unwrap();
        folder
    }

    /// The same model with an adapter of random tensors, and a folder in which the adapter is saved.
    pub fn with_adapter(&self, config: &dyn AdapterMethod, name: &str) -> (Self, TempDir) {
        let mut model = self.clone();
        model.inject_adapter(config, name).unwrap();
        randomise(&mut model, name, 0.5).unwrap();
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path(), name).unwrap();
        (model, folder)
    }
}

/// Scale with numbers that start as `start`, for the modules that the model declares.
pub fn starting_with(start: f64) -> ScaleConfig {
    register::<ScaleSettings>().unwrap();
    ScaleConfig::of(ScaleSettings { start })
}

/// Scale on both layers that can be adapted.
pub fn scale() -> ScaleConfig {
    starting_with(1.0).with_targets(targets!(Model; "own", "theirs"))
}

/// The number of each layer, by the layer's name.
pub fn factor(model: &Model, adapter: &str, layer: &str) -> f64 {
    let state = model.adapter_state_dict(adapter).unwrap();
    let factor = &state[&format!("base_model.model.{layer}.scale_factor")];
    f64::from(factor.to_vec1::<f32>().unwrap()[0])
}
