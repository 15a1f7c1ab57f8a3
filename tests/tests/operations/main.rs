//! What can be done with the adapters of a model beyond activating and merging them.

mod combining;
mod half_precision;
mod hotswap;
mod mixed_methods;
mod renaming;
mod saving;
mod selection;
mod starts;
mod state_dicts;
mod status;

use candle_core::Tensor;
use candle_nn::{LayerNorm, Linear, Module};
use peft_runtime::ModulePath;
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;
use peft_tests::tensors::{random, randomise};

/// A model in which the name of one layer is the end of another layer's path.
#[derive(Clone, Injectable)]
struct Model {
    lin: Adapted<Linear>,
    block: Block,
    norm: Adapted<LayerNorm>,
    head: Adapted<Linear>,
}

#[derive(Clone, Injectable)]
struct Block {
    lin: Adapted<Linear>,
    out: Adapted<Linear>,
}

fn linear(inputs: usize, outputs: usize) -> Adapted<Linear> {
    Linear::new(random(&[outputs, inputs]), Some(random(&[outputs]))).into()
}

impl Model {
    fn new() -> Self {
        Self {
            lin: linear(5, 6),
            block: Block { lin: linear(6, 6), out: linear(6, 7) },
            norm: LayerNorm::new(random(&[7]), random(&[7]), 1e-5).into(),
            head: linear(7, 3),
        }
    }

    fn input() -> Tensor {
        random(&[4, 5])
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let forward = || -> candle_core::Result<Tensor> {
            let hidden = self.lin.forward(x)?.tanh()?;
            let hidden = self.block.out.forward(&self.block.lin.forward(&hidden)?.tanh()?)?;
            self.head.forward(&self.norm.forward(&hidden)?)
        };
        forward().unwrap()
    }

    /// Injects and randomises an adapter.
    fn add(&mut self, config: &dyn AdapterMethod, name: &str) {
        self.inject_adapter(config, name).unwrap();
        randomise(self, name, 0.5).unwrap();
    }

    /// The same model with one acting adapter.
    fn with(&self, config: &dyn AdapterMethod, name: &str) -> Self {
        let mut model = self.clone();
        model.add(config, name);
        model
    }
}

/// Two layers: `block.out` and `head`.
fn lora() -> LoraConfig {
    LoraConfig::new(2, 4.0).with_targets(["out", "head"])
}

fn texts(paths: &[ModulePath]) -> Vec<&str> {
    paths.iter().map(ModulePath::as_str).collect()
}
