//! What a training step costs: time, memory, and the share of matrix products, for a known model's sizes with random
//! weights.

use std::time::Instant;

use anyhow::Result;
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device};
use clap::{Parser, ValueEnum};
use peft_examples::bench::{StepOptions, StepTime, report};
use peft_examples::float_type::float_type;
use peft_examples::progress::say;
use peft_examples::quantization::ggml_type;
use peft_examples::shapes::{RandomWeights, random_tokens};
use peft_examples::threads::on_threads;
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use peft_runtime::train::{AdamW, MatmulClock, RankAllocator, Schedule, Trainer};

/// Measures training steps of an adapter on a language model with random weights and random tokens.
///
/// Progress goes to standard error; with `--json` the last line of standard output is one JSON object.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    step: StepOptions,
    /// The adapter method.
    #[arg(long, value_enum, default_value_t = Method::Lora)]
    method: Method,
    /// Quantizes the weights of linear layers to this type; for `qlora`, Q4_1 by default.
    #[arg(long, value_parser = ggml_type, value_name = "TYPE")]
    quantized: Option<GgmlDType>,
    /// The precision of the base model and of what it computes: bf16, f16 or f32. Adapters train in f32.
    #[arg(long, value_parser = float_type, value_name = "TYPE", default_value = "f32")]
    dtype: DType,
    /// Computes each block again in the backward pass, instead of keeping what it needs.
    #[arg(long)]
    checkpointing: bool,
}

/// The adapter methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    /// Low-rank factors on all seven projections.
    Lora,
    /// The same on quantized weights.
    Qlora,
    /// The same, with separate magnitudes for the directions of the weight.
    Dora,
    /// Factors with singular values, a third of which training drops.
    Adalora,
    /// Scales on keys, values and the input of the last layer of the feed-forward part.
    Ia3,
}

impl Arguments {
    fn model(&self) -> Result<LlamaModel> {
        let config = self.step.shape.config()?;
        let weights = RandomWeights::builder(self.step.seed, self.dtype, &Device::Cpu);
        let default = (self.method == Method::Qlora).then_some(GgmlDType::Q4_1);
        Ok(match self.quantized.or(default) {
            Some(dtype) => LlamaModel::new_quantized(&config, weights, dtype)?,
            None => LlamaModel::new(&config, weights)?,
        })
    }

    fn config(&self) -> Box<dyn AdapterMethod> {
        let StepOptions { rank, steps, seed, .. } = self.step;
        let targets = targets!(
            LlamaModel;
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
        );
        let alpha = 2.0 * rank as f64;
        let lora = LoraConfig::new(rank, alpha).with_targets(targets.clone()).with_seed(seed);
        match self.method {
            Method::Lora | Method::Qlora => Box::new(lora),
            Method::Dora => Box::new(lora.with_dora(true)),
            Method::Adalora => Box::new(
                AdaLoraConfig::new(rank + rank / 2, rank, steps)
                    .with_alpha(alpha)
                    .with_schedule(steps / 10, steps / 3, 1)
                    .with_targets(targets)
                    .with_seed(seed),
            ),
            Method::Ia3 => Box::new(
                Ia3Config::new()
                    .with_targets(targets!(LlamaModel; "k_proj", "v_proj", "down_proj"))
                    .with_feedforward(targets!(LlamaModel; "down_proj"))
                    .with_seed(seed),
            ),
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    on_threads(arguments.step.threads, || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    arguments.step.check()?;
    let mut model = arguments.model()?;
    say(model.inject_adapter(&*arguments.config(), "default")?.to_string());
    say(model.trainable_summary());
    say(format!("computing in {}", arguments.dtype.as_str()));
    model.set_gradient_checkpointing(arguments.checkpointing);
    model.train();

    let optimizer = AdamW::for_model(&model, arguments.step.lr)?;
    let mut trainer = Trainer::new(&model, optimizer, Schedule::constant())?;
    if arguments.method == Method::Adalora {
        trainer = trainer.with_rank_allocator(RankAllocator::new(&model, "default")?);
    }
    let shape = (arguments.step.batch, arguments.step.seq);
    let vocabulary = model.config().vocab_size;
    let mut steps = Vec::new();
    for number in 0..arguments.step.steps {
        let seed = arguments.step.seed + number as u64;
        let tokens = random_tokens(vocabulary, shape, seed, &Device::Cpu)?;
        let (start, products) = (Instant::now(), MatmulClock::start());
        let loss = model.loss(&tokens, &tokens)?;
        let done = trainer.step(&model, &loss)?;
        drop(loss);
        let time = StepTime { seconds: start.elapsed().as_secs_f64(), products: Some(products.seconds()) };
        say(format!("step {}: loss {:.4}, {:.3} s", done.step, done.loss, time.seconds));
        steps.push(time);
    }
    report(&arguments.step, &steps);
    Ok(())
}
