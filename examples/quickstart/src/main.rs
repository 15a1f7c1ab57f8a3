//! All main steps, without a download: train a base model, freeze it, adapt it to another domain, save, load, merge.

#![expect(clippy::print_stdout, reason = "results go to standard output")]
#![expect(clippy::print_stderr, reason = "progress goes to standard error")]

mod arguments;
mod digits;

use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{
    AdamW, Conv2d, Conv2dConfig, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap, loss,
};
use peft_runtime::nn;
use peft_runtime::prelude::*;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use arguments::{Arguments, HELP};
use digits::Digits;

/// Pictures in a batch.
const BATCH: usize = 64;
/// Pictures that are held out from training.
const HELD_OUT: usize = 360;

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

    /// The share of pictures whose digit is recognised.
    fn accuracy(&self, digits: &Digits, indices: &[usize]) -> candle_core::Result<f64> {
        let (pictures, labels) = digits.batch(indices, &Device::Cpu)?;
        let predicted = no_grad(|| self.forward(&pictures))?.argmax(1)?;
        let correct = predicted.eq(&labels)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
        Ok(f64::from(correct) / indices.len() as f64)
    }
}

/// Trains `vars` of the model for `epochs` passes over the pictures.
fn train(
    model: &Classifier,
    vars: Vec<Var>,
    digits: &Digits,
    indices: &[usize],
    epochs: usize,
) -> Result<()> {
    let mut optimizer = AdamW::new(vars, ParamsAdamW { lr: 3e-3, ..ParamsAdamW::default() })?;
    let mut order = indices.to_vec();
    for epoch in 0..epochs {
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(epoch as u64));
        let mut sum = 0.0;
        for batch in order.chunks(BATCH) {
            let (pictures, labels) = digits.batch(batch, &Device::Cpu)?;
            let loss = loss::cross_entropy(&model.forward(&pictures)?, &labels)?;
            optimizer.backward_step(&loss)?;
            sum += f64::from(loss.to_scalar::<f32>()?) * batch.len() as f64;
        }
        eprintln!("  epoch {:>2} of {epochs}: loss {:.3}", epoch + 1, sum / order.len() as f64);
    }
    Ok(())
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

fn main() -> Result<()> {
    let Some(arguments) = Arguments::from_command_line()? else {
        print!("{HELP}");
        return Ok(());
    };
    let start = Instant::now();
    let upright = Digits::load()?;
    let turned = upright.turned_and_inverted();
    let mut order: Vec<usize> = (0..upright.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(arguments.seed));
    let (held_out, training) = order.split_at(HELD_OUT);

    // A base model, trained like any candle model.
    eprintln!("training the base model on {} upright digits", training.len());
    let varmap = VarMap::new();
    let mut model = Classifier::new(&VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu))?;
    train(&model, varmap.all_vars(), &upright, training, arguments.base_epochs)?;
    let on_upright = model.accuracy(&upright, held_out)?;
    let before = model.accuracy(&turned, held_out)?;
    println!("base: {} on upright digits, {} on turned ones", percent(on_upright), percent(before));

    // LoRA on every layer; the base is frozen from here on.
    let config = LoraConfig::new(arguments.rank, 2.0 * arguments.rank as f64).with_seed(arguments.seed);
    println!("{}", model.inject_adapter(&config, "turned")?);
    println!("{}", model.module_tree());
    println!("{}", model.trainable_summary());
    eprintln!("training the adapter on the same digits, turned and inverted");
    let vars = model.trainable_parameters().into_iter().map(|(_, var)| var).collect();
    train(&model, vars, &turned, training, arguments.epochs)?;
    let after = model.accuracy(&turned, held_out)?;
    println!("with the adapter: {} on turned digits", percent(after));
    model.disable_adapters();
    ensure!(
        model.accuracy(&upright, held_out)? == on_upright,
        "without the adapter, the base does not compute what it did"
    );
    model.enable_adapters();

    // Only the adapter is saved; it is loaded into a fresh copy of the base.
    let folder = tempfile::tempdir()?;
    let saved = model.save_pretrained(folder.path(), "turned")?;
    let size = std::fs::metadata(saved.join("adapter_model.safetensors"))?.len();
    let base = model.base_state_dict().into_iter().collect();
    let mut fresh = Classifier::new(&VarBuilder::from_tensors(base, DType::F32, &Device::Cpu))?;
    println!("{}", fresh.load_adapter(folder.path(), "turned")?.injection);
    let (pictures, _) = turned.batch(held_out, &Device::Cpu)?;
    let outputs = [model.forward(&pictures)?, fresh.forward(&pictures)?];
    let [ours, theirs] = outputs.map(|output| output.to_vec2::<f32>());
    ensure!(ours? == theirs?, "the loaded adapter computes something else");
    println!("saved {size} bytes, loaded them into a fresh base: identical outputs");
    fresh.merge_and_unload(&MergeOptions::active())?;
    let merged = fresh.accuracy(&turned, held_out)?;
    println!("merged into plain layers: {} on turned digits", percent(merged));
    ensure!(
        after > before + 0.3,
        "the adapter has not learned: {} before, {} after",
        percent(before),
        percent(after)
    );
    println!("{:.1} s in all", start.elapsed().as_secs_f64());
    Ok(())
}
