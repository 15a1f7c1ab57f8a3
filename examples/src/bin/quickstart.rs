//! The main job with nothing to download: train a base, freeze it, adapt it to another domain, save, load.

use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{
    AdamW, Conv2d, Conv2dConfig, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap, loss,
};
use clap::Parser;
use peft_examples::batches::{shuffled, shuffled_batches};
use peft_examples::digits::Digits;
use peft_examples::progress::{bar, result};
use peft_runtime::nn;
use peft_runtime::prelude::*;

/// Fine-tunes a small digit classifier with LoRA on digits that are turned and inverted.
#[derive(Parser)]
struct Arguments {
    /// The rank of the adapter.
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// Passes over the upright digits that train the base.
    #[arg(long, default_value_t = 12)]
    base_epochs: usize,
    /// Passes over the turned digits that train the adapter.
    #[arg(long, default_value_t = 12)]
    epochs: usize,
    /// The seed of the split, the batches and the adapter.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Injectable)]
#[peft(target = ["conv1", "conv2", "hidden", "output"])]
struct Classifier {
    conv1: Adapted<Conv2d>,
    conv2: Adapted<Conv2d>,
    hidden: Adapted<Linear>,
    output: Adapted<Linear>,
}

impl Classifier {
    fn new(vb: &VarBuilder<'_>) -> candle_core::Result<Self> {
        let same_size = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
        Ok(Self {
            conv1: nn::conv2d(1, 16, 3, same_size, vb.pp("conv1"))?,
            conv2: nn::conv2d(16, 32, 3, same_size, vb.pp("conv2"))?,
            hidden: nn::linear(32 * 4 * 4, 64, vb.pp("hidden"))?,
            output: nn::linear(64, 10, vb.pp("output"))?,
        })
    }

    fn forward(&self, pictures: &Tensor) -> candle_core::Result<Tensor> {
        let x = self.conv1.forward(pictures)?.relu()?;
        let x = self.conv2.forward(&x)?.relu()?.max_pool2d(2)?.flatten_from(1)?;
        self.output.forward(&self.hidden.forward(&x)?.relu()?)
    }

    /// The share of pictures whose digit is told right.
    fn accuracy(&self, digits: &Digits, indices: &[usize]) -> candle_core::Result<f64> {
        let (pictures, labels) = digits.batch(indices, &Device::Cpu)?;
        let told = no_grad(|| self.forward(&pictures))?.argmax(1)?;
        let right = told.eq(&labels)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
        Ok(f64::from(right) / indices.len() as f64)
    }
}

/// Trains `vars` of the model for some passes over the pictures.
fn train(
    model: &Classifier,
    vars: Vec<Var>,
    digits: &Digits,
    indices: &[usize],
    epochs: usize,
    what: &str,
) -> Result<()> {
    let mut optimizer = AdamW::new(vars, ParamsAdamW { lr: 3e-3, ..ParamsAdamW::default() })?;
    let progress = bar(epochs * indices.len().div_ceil(64), what);
    for epoch in 0..epochs {
        for batch in shuffled_batches(indices, 64, epoch as u64) {
            let (pictures, labels) = digits.batch(&batch, &Device::Cpu)?;
            let loss = loss::cross_entropy(&model.forward(&pictures)?, &labels)?;
            optimizer.backward_step(&loss)?;
            progress.set_message(format!("loss {:.3}", loss.to_scalar::<f32>()?));
            progress.inc(1);
        }
    }
    progress.finish();
    Ok(())
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let start = Instant::now();
    let upright = Digits::load()?;
    let turned = upright.turned_and_inverted();
    let order = shuffled(upright.len(), arguments.seed);
    let (held_out, training) = order.split_at(360);

    // A base model, trained as any candle model is.
    let varmap = VarMap::new();
    let mut model = Classifier::new(&VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu))?;
    train(&model, varmap.all_vars(), &upright, training, arguments.base_epochs, "base")?;
    let on_upright = model.accuracy(&upright, held_out)?;
    let before = model.accuracy(&turned, held_out)?;
    result(format!("base: {} on upright digits, {} on turned ones", percent(on_upright), percent(before)));

    // LoRA on every layer; the base is frozen from here on.
    let config = LoraConfig::new(arguments.rank, 2.0 * arguments.rank as f64).with_seed(arguments.seed);
    result(model.inject_adapter(&config, "turned")?.to_string());
    result(model.module_tree());
    result(model.trainable_summary());
    let vars = model.trainable_parameters().into_iter().map(|(_, var)| var).collect();
    train(&model, vars, &turned, training, arguments.epochs, "adapter")?;
    let after = model.accuracy(&turned, held_out)?;
    result(format!("with the adapter: {} on turned digits", percent(after)));
    model.disable_adapters();
    ensure!(model.accuracy(&upright, held_out)? == on_upright, "without the adapter the base is what it was");
    model.enable_adapters();

    // The adapter alone goes to a folder, and onto a fresh copy of the base.
    let folder = tempfile::tempdir()?;
    let saved = model.save_pretrained(folder.path(), "turned")?;
    let size = std::fs::metadata(saved.join("adapter_model.safetensors"))?.len();
    let base = model.base_state_dict().into_iter().collect();
    let mut fresh = Classifier::new(&VarBuilder::from_tensors(base, DType::F32, &Device::Cpu))?;
    result(fresh.load_adapter(folder.path(), "turned")?.injection.to_string());
    let (pictures, _) = turned.batch(held_out, &Device::Cpu)?;
    let outputs = [model.forward(&pictures)?, fresh.forward(&pictures)?];
    let [ours, theirs] = outputs.map(|output| output.to_vec2::<f32>());
    ensure!(ours? == theirs?, "the loaded adapter computes something else");
    result(format!("saved {size} bytes, loaded them into a fresh base: identical outputs"));
    fresh.merge_and_unload(&MergeOptions::active())?;
    result(format!(
        "merged into plain layers: {} on turned digits",
        percent(fresh.accuracy(&turned, held_out)?)
    ));
    ensure!(after > before + 0.3, "the adapter has not learned: {} to {}", percent(before), percent(after));
    result(format!("{:.1} s in all", start.elapsed().as_secs_f64()));
    Ok(())
}
