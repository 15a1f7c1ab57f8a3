//! The example of PEFT's low-level guide, step by step: inject LoRA into a model of your own.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Embedding, Linear, Module, VarBuilder, VarMap};
use clap::Parser;
use peft_examples::progress::result;
use peft_runtime::nn;
use peft_runtime::prelude::*;

/// Injects LoRA into the guide's `DummyModel`, and prints the model and the adapter's state dict.
#[derive(Parser)]
struct Arguments {
    /// The rank of the adapter.
    #[arg(long, default_value_t = 64)]
    rank: usize,
}

#[derive(Injectable)]
#[peft(target = "linear")]
struct DummyModel {
    embedding: Adapted<Embedding>,
    linear: Adapted<Linear>,
    lm_head: Adapted<Linear>,
}

impl DummyModel {
    fn new(vb: &VarBuilder<'_>) -> candle_core::Result<Self> {
        Ok(Self {
            embedding: nn::embedding(10, 10, vb.pp("embedding"))?,
            linear: nn::linear(10, 10, vb.pp("linear"))?,
            lm_head: nn::linear(10, 10, vb.pp("lm_head"))?,
        })
    }

    fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        self.lm_head.forward(&self.linear.forward(&self.embedding.forward(ids)?)?)
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let vb = VarBuilder::from_backend(Box::new(VarMap::new()), DType::F32, Device::Cpu);
    let mut model = DummyModel::new(&vb)?;

    let config =
        LoraConfig::new(arguments.rank, 16.0).with_dropout(0.1).with_targets(targets!(DummyModel; "linear"));
    let report = model.inject_adapter(&config, "default")?;
    result(report.to_string());
    result(model.module_tree());
    result(model.trainable_summary());

    let output = model.forward(&Tensor::arange(0u32, 8, &Device::Cpu)?.unsqueeze(0)?)?;
    result(format!("output: {:?}", output.dims()));
    for (key, tensor) in model.adapter_state_dict("default")? {
        result(format!("{key}: {:?}", tensor.dims()));
    }
    Ok(())
}
