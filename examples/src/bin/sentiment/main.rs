//! Fine-tunes a real encoder on real data: MiniLM, with an adapter and a new head, on rated movie-review snippets.

mod data;
mod model;
mod training;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use candle_core::{DType, Device};
use clap::{Parser, ValueEnum};
use peft_examples::float_type::float_type;
use peft_examples::memory::peak_resident_mib;
use peft_examples::progress::{result, say};
use peft_examples::source::model_path;
use peft_examples::threads::on_threads;
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;
use peft_runtime::train::{
    AdamW, LoraPlus, RankAllocation, RankAllocator, Schedule, Trainer, lora_plus_groups,
};
use serde_json::json;

use data::Reviews;
use model::SentimentModel;
use training::{Batches, Curves};

/// A training step allocates and drops hundreds of megabytes of tensors. This allocator keeps dropped memory, so the
/// system does not have to hand out zeroed pages again and again. An epoch took a sixth less time with it, and a tenth
/// more memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Trains a sentiment classifier on a sentence encoder with an adapter, and prints its accuracy.
///
/// Progress goes to standard error; the last line of standard output is one JSON object.
#[derive(Parser)]
pub struct Arguments {
    /// The folder of a BERT encoder (`config.json`, `model.safetensors`, `tokenizer.json`), or its id on the hub.
    #[arg(long)]
    model: String,
    /// The rated snippets, one per line: `id TAB rating TAB text`.
    #[arg(long)]
    data: PathBuf,
    /// The adapter method.
    #[arg(long, value_enum, default_value_t = Method::Lora)]
    method: Method,
    /// The precision of the base model and of what it computes: bf16, f16 or f32. The adapter trains in f32, the
    /// head in the precision of the model, as with PEFT.
    #[arg(long, value_parser = float_type, value_name = "TYPE", default_value = "f32")]
    dtype: DType,
    /// The rank of the adapter.
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// The adapter's alpha.
    #[arg(long, default_value_t = 16.0)]
    alpha: f64,
    /// The learning rate; by default 4e-3, for AdaLoRA 2e-3, for IA3 5e-3.
    #[arg(long)]
    lr: Option<f64>,
    /// Whether the learning rate falls to zero after a short warm-up.
    #[arg(long, value_enum, default_value_t = Decay::Linear)]
    schedule: Decay,
    /// LoRA+: the factors B learn this many times as fast as everything else.
    #[arg(long)]
    lora_plus: Option<f64>,
    /// Epochs, which are passes over the data.
    #[arg(long, default_value_t = 1)]
    epochs: usize,
    /// Snippets in a batch.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// The most tokens of a snippet that are read.
    #[arg(long, default_value_t = 64)]
    max_len: usize,
    /// The seed of the split, the batches, the head and the adapter.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Saves the adapter here.
    #[arg(long)]
    save: Option<PathBuf>,
    /// Draws loss and accuracy here, as PNG.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Trains on only this many snippets.
    #[arg(long)]
    limit: Option<usize>,
    /// The number of threads; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
}

/// The adapter methods of the example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    /// Low-rank factors on query and value.
    Lora,
    /// The same with singular values, some of which training drops: 1.5 times `--rank` at first, `--rank` on average
    /// in the end.
    Adalora,
    /// Scales on keys, values and the input of the output layers.
    Ia3,
}

/// How the learning rate changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Decay {
    /// It stays the same.
    Constant,
    /// It rises over the first 6% of the steps and then falls to zero.
    Linear,
}

impl Arguments {
    /// The config of the adapter for a run of `steps` steps; the head trains in full with every method.
    fn config(&self, steps: usize) -> Box<dyn AdapterMethod> {
        let targets = targets!(SentimentModel; "query", "value");
        match self.method {
            Method::Lora => Box::new(
                LoraConfig::new(self.rank, self.alpha)
                    .with_targets(targets)
                    .with_modules_to_save(["classifier"])
                    .with_task_type("SEQ_CLS")
                    .with_seed(self.seed),
            ),
            Method::Adalora => Box::new(
                AdaLoraConfig::new(self.rank + self.rank / 2, self.rank, steps)
                    .with_alpha(self.alpha)
                    .with_schedule(steps / 10, steps / 3, 5)
                    .with_targets(targets)
                    .with_modules_to_save(["classifier"])
                    .with_task_type("SEQ_CLS")
                    .with_seed(self.seed),
            ),
            Method::Ia3 => Box::new(
                Ia3Config::new()
                    .with_targets(targets!(SentimentModel; "key", "value", "output.dense"))
                    .with_feedforward(targets!(SentimentModel; "output.dense"))
                    .with_modules_to_save(["classifier"])
                    .with_task_type("SEQ_CLS")
                    .with_seed(self.seed),
            ),
        }
    }

    fn learning_rate(&self) -> f64 {
        self.lr.unwrap_or(match self.method {
            Method::Lora => 4e-3,
            Method::Adalora => 2e-3,
            Method::Ia3 => 5e-3,
        })
    }

    fn schedule(&self, steps: u64) -> Schedule {
        match self.schedule {
            Decay::Constant => Schedule::constant(),
            Decay::Linear => Schedule::linear(steps).with_warm_up(steps * 6 / 100),
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    on_threads(arguments.threads, || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let folder = model_path(&arguments.model)?;
    let reviews = Reviews::load(&arguments.data, &folder, arguments.max_len)?;
    let (training, held_out) = reviews.split(arguments.seed, arguments.limit);
    say(format!("{} snippets to train on, {} held out", training.len(), held_out.len()));

    let mut model = SentimentModel::from_folder(&folder, arguments.seed, arguments.dtype, &Device::Cpu)?;
    let steps = arguments.epochs * training.len().div_ceil(arguments.batch);
    say(model.inject_adapter(&*arguments.config(steps), "default")?.to_string());
    say(model.trainable_summary());

    let data = Batches { reviews: &reviews, batch: arguments.batch, device: Device::Cpu };
    let before = data.accuracy(&model, &held_out)?;
    say(format!("accuracy before training: {:.2}%", 100.0 * before));
    let optimizer = match arguments.lora_plus {
        Some(ratio) => AdamW::new(lora_plus_groups(&model, arguments.learning_rate(), LoraPlus::new(ratio)))?,
        None => AdamW::for_model(&model, arguments.learning_rate())?,
    };
    let mut trainer = Trainer::new(&model, optimizer, arguments.schedule(steps as u64))?;
    if arguments.method == Method::Adalora {
        trainer = trainer.with_rank_allocator(RankAllocator::new(&model, "default")?);
    }
    let start = Instant::now();
    let mut curves = Curves::new(before);
    for epoch in 0..arguments.epochs {
        let seed = arguments.seed + epoch as u64;
        model.train();
        data.epoch(&model, &mut trainer, &training, &mut curves, seed)?;
        model.eval();
        let accuracy = data.accuracy(&model, &held_out)?;
        curves.end_epoch(accuracy);
        say(format!("accuracy after epoch {}: {:.2}%", epoch + 1, 100.0 * accuracy));
    }
    let seconds = start.elapsed().as_secs_f64();
    if let Some(allocator) = trainer.rank_allocator() {
        say(rank_table(allocator));
    }

    if let Some(folder) = &arguments.save {
        let saved = model.save_pretrained(folder, "default")?;
        say(format!("saved the adapter in {}", saved.display()));
    }
    if let Some(path) = &arguments.plot {
        curves.draw(path)?;
        say(format!("drew the curves in {}", path.display()));
    }
    let trainable: usize = model.trainable_parameters().iter().map(|(_, var)| var.elem_count()).sum();
    let summary = json!({
        "accuracy": curves.last_accuracy(),
        "seconds": seconds,
        "peak_rss_mb": peak_resident_mib(),
        "trainable": trainable,
    });
    result(summary.to_string());
    Ok(())
}

/// The rank that each layer has kept.
fn rank_table(allocator: &dyn RankAllocation) -> String {
    let mut table = format!("ranks of {} in all:", allocator.budget());
    for (path, rank) in allocator.ranks() {
        table.push_str(&format!("\n  {path:<45} {rank:>3} {}", "#".repeat(rank)));
    }
    table
}
