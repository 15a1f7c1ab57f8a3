//! A training run that is the same every time: the model, the data and the trainer for the tests of checkpoints.

use std::path::Path;

use candle_core::{Device, Tensor};
use candle_nn::{Linear, Module};
use peft_runtime::Result;
use peft_runtime::prelude::*;
use peft_runtime::train::{AdamW, Checkpoints, LoraPlus, RankAllocator, Schedule, Trainer, lora_plus_groups};

/// The sizes of the model.
const FEATURES: usize = 6;
const HIDDEN: usize = 10;
const OUTPUTS: usize = 3;

/// Two blocks and a head.
#[derive(Clone, Injectable)]
pub struct Mlp {
    blocks: Vec<Block>,
    head: Adapted<Linear>,
}

/// x + down(tanh(up(x))).
#[derive(Clone, Injectable)]
pub struct Block {
    up: Adapted<Linear>,
    down: Adapted<Linear>,
}

/// What a run trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// LoRA with dropout, in LoRA+'s groups.
    Lora,
    /// AdaLoRA with its rank allocator.
    AdaLora,
}

/// Values that look random and are the same every time.
fn wave(rows: usize, columns: usize, salt: f32) -> candle_core::Result<Tensor> {
    let value = |i: usize| 0.6 * (salt + 1.7 * i as f32 + 0.01 * (i * i) as f32).sin();
    Tensor::from_vec((0..rows * columns).map(value).collect::<Vec<f32>>(), (rows, columns), &Device::Cpu)
}

fn linear(inputs: usize, outputs: usize, salt: f32) -> candle_core::Result<Adapted<Linear>> {
    let bias = wave(1, outputs, salt + 0.5)?.squeeze(0)?;
    Ok(Adapted::new(Linear::new(wave(outputs, inputs, salt)?, Some(bias))))
}

impl Block {
    fn new(salt: f32) -> candle_core::Result<Self> {
        Ok(Self { up: linear(FEATURES, HIDDEN, salt)?, down: linear(HIDDEN, FEATURES, salt + 3.0)? })
    }

    /// The block's output.
    ///
    /// # Errors
    /// If the input does not fit.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x + self.down.forward(&self.up.forward(x)?.tanh()?)?
    }
}

impl Mlp {
    /// The model without adapters.
    ///
    /// # Errors
    /// If a tensor cannot be created.
    pub fn new() -> candle_core::Result<Self> {
        Ok(Self { blocks: vec![Block::new(0.0)?, Block::new(1.0)?], head: linear(FEATURES, OUTPUTS, 2.0)? })
    }

    /// The model with an adapter called `default`, in training mode.
    ///
    /// # Errors
    /// If a tensor cannot be created.
    pub fn adapted(method: Method) -> Result<Self> {
        let mut model = Self::new()?;
        let targets = targets!(Mlp; "up", "down", "head");
        match method {
            Method::Lora => {
                let config = LoraConfig::new(4, 8.0).with_dropout(0.2).with_seed(7).with_targets(targets);
                model.inject_adapter(&config, "default")?
            }
            Method::AdaLora => {
                let config = AdaLoraConfig::new(4, 2, 30).with_schedule(3, 6, 2).with_dropout(0.1);
                model.inject_adapter(&config.with_targets(targets), "default")?
            }
        };
        model.train();
        Ok(model)
    }

    /// The model's output.
    ///
    /// # Errors
    /// If the input does not fit.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = self.blocks.iter().try_fold(x.clone(), |x, block| block.forward(&x))?;
        self.head.forward(&x)
    }

    /// The same output, with gradient checkpointing of the blocks.
    ///
    /// # Errors
    /// If the input does not fit.
    pub fn forward_recomputed(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let block = |x: Tensor, block: &Block| peft_runtime::nn::recomputed(block, &x, Block::forward);
        let x = self.blocks.iter().try_fold(x.clone(), block)?;
        self.head.forward(&x)
    }

    /// The loss of batch `number`.
    ///
    /// # Errors
    /// If a tensor cannot be created.
    pub fn loss(&self, number: u64) -> candle_core::Result<Tensor> {
        let x = input(number)?;
        let target = (x.narrow(1, 0, OUTPUTS)?.sqr()? - 0.3)?;
        (self.forward(&x)? - target)?.sqr()?.mean_all()
    }
}

/// The inputs of batch `number`.
///
/// # Errors
/// If a tensor cannot be created.
pub fn input(number: u64) -> candle_core::Result<Tensor> {
    wave(5, FEATURES, 10.0 + number as f32)
}

/// The trainer of every run: two losses per step, a checkpoint after every `every` steps.
///
/// # Errors
/// If the model has no adapter.
pub fn trainer(model: &Mlp, method: Method, folder: &Path, every: u64) -> Result<Trainer> {
    let groups = lora_plus_groups(model, 0.01, LoraPlus::new(4.0).with_weight_decay(0.01));
    let schedule = Schedule::cosine(30).with_warm_up(3);
    let trainer = Trainer::new(model, AdamW::new(groups)?, schedule)?;
    let trainer = trainer.with_accumulation(2).with_clipping(0.5).with_strict_audit(true);
    let trainer = trainer.with_checkpoints_in(Checkpoints::new(folder).with_kept(2), every);
    Ok(match method {
        Method::Lora => trainer,
        Method::AdaLora => trainer.with_rank_allocator(RankAllocator::new(model, "default")?),
    })
}

/// Resumes the run in `folder`, or starts it, until it has taken `steps` steps; `pause` is called after each.
///
/// # Errors
/// If a step or a checkpoint fails.
pub fn run(method: Method, folder: &Path, every: u64, steps: u64, pause: impl Fn()) -> Result<Mlp> {
    let model = Mlp::adapted(method)?;
    let mut trainer = trainer(&model, method, folder, every)?;
    trainer.resume(&model)?;
    while trainer.steps() < steps {
        let loss = model.loss(trainer.batches())?;
        trainer.step(&model, &loss)?;
        pause();
    }
    Ok(model)
}

/// The files below `folder` with their bytes, by their paths in it.
///
/// # Errors
/// If one cannot be read.
pub fn files(folder: &Path) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
                found.push((name, std::fs::read(&path)?));
            }
        }
    }
    found.sort();
    Ok(found)
}
