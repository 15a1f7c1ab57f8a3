//! The same training step as in `train_bench`, made of candle's own differentiable ops: its cost without this library.

mod model;

use std::time::Instant;

use anyhow::Result;
use candle_core::{DType, Device};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use clap::Parser;
use peft_examples::bench::{StepOptions, StepTime, report};
use peft_examples::progress::say;
use peft_examples::shapes::{RandomWeights, random_tokens};
use peft_examples::threads::on_threads;

use model::Llama;

/// Measures training steps of LoRA on all seven projections, built only with candle and candle-nn.
///
/// Progress goes to standard error; with `--json` the last line of standard output is one JSON object, in which the
/// share of matrix products is null, because candle does not measure it.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    step: StepOptions,
}

fn main() -> Result<()> {
    let Arguments { step: options } = Arguments::parse();
    on_threads(options.threads, || run(&options))
}

fn run(options: &StepOptions) -> Result<()> {
    options.check()?;
    let config = options.shape.config()?;
    let weights = RandomWeights::builder(options.seed, DType::F32, &Device::Cpu);
    let model = Llama::new(&config, options.rank, &weights)?;
    let variables = model.variables();
    let trainable: usize = variables.iter().map(|variable| variable.elem_count()).sum();
    say(format!("{} variables, {trainable} elements", variables.len()));
    let mut optimizer = AdamW::new(variables, ParamsAdamW { lr: options.lr, ..ParamsAdamW::default() })?;

    let mut steps = Vec::new();
    for number in 0..options.steps {
        let seed = options.seed + number as u64;
        let tokens = random_tokens(config.vocab_size, (options.batch, options.seq), seed, &Device::Cpu)?;
        let start = Instant::now();
        let loss = model.loss(&tokens)?;
        optimizer.backward_step(&loss)?;
        let value = loss.to_scalar::<f32>()?;
        drop(loss);
        let time = StepTime { seconds: start.elapsed().as_secs_f64(), products: None };
        say(format!("step {}: loss {value:.4}, {:.3} s", number + 1, time.seconds));
        steps.push(time);
    }
    report(options, &steps);
    Ok(())
}
