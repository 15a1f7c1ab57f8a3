//! What adapters cost outside training: injecting, loading one after the other, mixed batches, unmerged inference.

use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use peft_examples::bench::median;
use peft_examples::float_type::float_type;
use peft_examples::progress::{result, say};
use peft_examples::shapes::{ModelShape, RandomWeights, random_tokens};
use peft_examples::threads::on_threads;
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use serde_json::{Value, json};

/// Measures adapters on a language model with random weights. Each line of standard output is one JSON object.
#[derive(Parser)]
struct Arguments {
    /// The sizes of the model.
    #[arg(long, value_enum, default_value_t = ModelShape::Smol135M)]
    shape: ModelShape,
    /// The rank of the adapters.
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// How many adapters are loaded.
    #[arg(long, default_value_t = 64)]
    adapters: usize,
    /// How often everything except loading is measured; the median counts.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// The precision of the base model and of what it computes: bf16, f16 or f32. Adapters are in f32.
    #[arg(long, value_parser = float_type, value_name = "TYPE", default_value = "f32")]
    dtype: DType,
    /// Threads to compute on; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
}

/// How many adapters a mixed batch has, one for each row, and how many tokens a row has.
const ROWS: usize = 8;
const LENGTH: usize = 32;

impl Arguments {
    fn config(&self) -> LoraConfig {
        let targets = targets!(
            LlamaModel;
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
        );
        LoraConfig::new(self.rank, 2.0 * self.rank as f64).with_targets(targets)
    }

    /// The same with both factors random, as after training.
    fn trained_config(&self) -> LoraConfig {
        self.config().with_init(LoraInit::Random)
    }

    /// Measures injecting a new adapter into all projections.
    fn injection(&self, base: &LlamaModel) -> Result<Value> {
        let mut layers = 0;
        let milliseconds = self.median_of(|| {
            let mut model = base.clone();
            let start = Instant::now();
            let report = model.inject_adapter(&self.config(), "default")?;
            layers = report.adapted.len();
            Ok(elapsed(start))
        })?;
        Ok(json!({"measured": "injection", "layers": layers, "milliseconds": milliseconds}))
    }

    /// Measures loading the same file again and again under new names; the model has all of them in the end.
    fn loading(&self, base: &LlamaModel) -> Result<(LlamaModel, Value)> {
        let folder = tempfile::tempdir()?;
        let mut model = base.clone();
        model.inject_adapter(&self.trained_config(), "default")?;
        model.save_pretrained(folder.path(), "default")?;
        let mut model = base.clone();
        let mut milliseconds = Vec::new();
        for number in 0..self.adapters {
            let start = Instant::now();
            model.load_adapter(folder.path(), &name(number))?;
            milliseconds.push(elapsed(start));
        }
        let eighth = (self.adapters / 8).max(1);
        let first = median(milliseconds[..eighth].to_vec());
        let last = median(milliseconds[self.adapters - eighth..].to_vec());
        let value = json!({
            "measured": "loading",
            "first_milliseconds": first,
            "last_milliseconds": last,
            "ratio": last / first,
            "milliseconds": milliseconds,
        });
        Ok((model, value))
    }

    /// A batch with an adapter for each row, compared with the same batch with one adapter.
    fn mixed_batch(&self, model: &mut LlamaModel) -> Result<Value> {
        let tokens = random_tokens(model.config().vocab_size, (ROWS, LENGTH), 0, &Device::Cpu)?;
        let names: Vec<String> = (0..ROWS).map(name).collect();
        model.set_adapter(&names[0])?;
        model.eval();
        let model = &*model;
        self.compared(
            "mixed_batch",
            || forward(model, &tokens),
            || model.with_adapter_rows(&names, |model| forward(model, &tokens))?,
        )
    }

    /// An adapter that is not merged, compared with the model without it.
    fn overhead(&self, base: &LlamaModel) -> Result<Value> {
        let tokens = random_tokens(base.config().vocab_size, (1, ROWS * LENGTH), 0, &Device::Cpu)?;
        let mut adapted = base.clone();
        adapted.inject_adapter(&self.trained_config(), "default")?;
        self.compared("overhead", || forward(base, &tokens), || forward(&adapted, &tokens))
    }

    /// The medians of two computations that take turns, and the ratio of the second to the first.
    fn compared(
        &self,
        what: &str,
        mut plain: impl FnMut() -> Result<()>,
        mut other: impl FnMut() -> Result<()>,
    ) -> Result<Value> {
        let (mut of_plain, mut of_other) = (Vec::new(), Vec::new());
        plain()?;
        other()?;
        for _ in 0..self.rounds {
            let start = Instant::now();
            plain()?;
            of_plain.push(elapsed(start));
            let start = Instant::now();
            other()?;
            of_other.push(elapsed(start));
        }
        let (plain, other) = (median(of_plain), median(of_other));
        Ok(json!({
            "measured": what,
            "plain_milliseconds": plain,
            "milliseconds": other,
            "ratio": other / plain,
        }))
    }

    /// The median of several measurements, after one that does not count.
    fn median_of(&self, mut measure: impl FnMut() -> Result<f64>) -> Result<f64> {
        measure()?;
        Ok(median((0..self.rounds).map(|_| measure()).collect::<Result<_>>()?))
    }
}

/// The hidden states of all tokens; the logits would only hide what adapters cost.
fn forward(model: &LlamaModel, tokens: &Tensor) -> Result<()> {
    no_grad(|| model.hidden_states(tokens, None))?;
    Ok(())
}

fn name(number: usize) -> String {
    format!("adapter{number}")
}

fn elapsed(start: Instant) -> f64 {
    1e3 * start.elapsed().as_secs_f64()
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    on_threads(arguments.threads, || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.rounds > 0, "`--rounds` must be at least 1");
    ensure!(arguments.adapters >= ROWS, "a mixed batch needs {ROWS} adapters");
    let base = LlamaModel::new(
        &arguments.shape.config()?,
        RandomWeights::builder(0, arguments.dtype, &Device::Cpu),
    )?;
    say("injecting");
    result(arguments.injection(&base)?.to_string());
    say(format!("loading {} adapters", arguments.adapters));
    let (mut loaded, loading) = arguments.loading(&base)?;
    result(loading.to_string());
    say("mixed batches");
    result(arguments.mixed_batch(&mut loaded)?.to_string());
    say("inference without merging");
    result(arguments.overhead(&base)?.to_string());
    Ok(())
}
