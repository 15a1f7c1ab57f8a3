//! The options of the example, and the settings that follow from them.

use std::path::PathBuf;

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use clap::{Parser, ValueEnum};
use peft_examples::float_type::float_type;
use peft_examples::quantization::ggml_type;
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;
use peft_runtime::train::Schedule;

/// Fine-tunes a language model of the Llama family on a text with an adapter, and shows what it writes before and
/// after.
///
/// Progress goes to standard error, and results to standard output, whose last line is one JSON object.
#[derive(Parser)]
pub struct Arguments {
    /// The model: a folder (`config.json`, safetensors weights, `tokenizer.json`), a GGUF file, or an id on the hub.
    #[arg(long)]
    pub model: String,
    /// A `tokenizer.json` to use instead of the model's own tokenizer.
    #[arg(long)]
    pub tokenizer: Option<PathBuf>,
    /// The text: a `.txt` file, or a `.jsonl` file of objects with a `text`; the beginning of Alice in Wonderland by
    /// default.
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// The adapter method.
    #[arg(long, value_enum, default_value_t = Method::Lora)]
    pub method: Method,
    /// What `qlora` quantizes the weights of a folder to; those of a GGUF file stay as they are.
    #[arg(long, value_parser = ggml_type, value_name = "TYPE", default_value = "Q4_1")]
    pub quantized: GgmlDType,
    /// The precision of the base model and of what it computes: bf16, f16 or f32. Adapters train in f32.
    #[arg(long, value_parser = float_type, value_name = "TYPE", default_value = "f32")]
    pub dtype: DType,
    /// The rank of the adapter.
    #[arg(long, default_value_t = 8)]
    pub rank: usize,
    /// The adapter's alpha; twice the rank by default.
    #[arg(long)]
    pub alpha: Option<f64>,
    /// The dropout on the adapter's input.
    #[arg(long, default_value_t = 0.0)]
    pub dropout: f64,
    /// The layers to adapt, by name; all seven projections of a block by default, for IA3 those that PEFT adapts.
    #[arg(long, value_delimiter = ',')]
    pub targets: Option<Vec<String>>,
    /// Tokens in a sequence.
    #[arg(long, default_value_t = 256)]
    pub seq: usize,
    /// Sequences in a batch.
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
    /// Batches in one step of the optimiser.
    #[arg(long, default_value_t = 1)]
    pub accumulate: usize,
    /// Steps of the optimiser.
    #[arg(long, default_value_t = 100)]
    pub steps: u64,
    /// The highest learning rate.
    #[arg(long, default_value_t = 5e-4)]
    pub lr: f64,
    /// How the learning rate continues after a warm-up over the first 5% of the steps.
    #[arg(long, value_enum, default_value_t = Decay::Cosine)]
    pub schedule: Decay,
    /// Scales gradients with a larger norm down to this norm.
    #[arg(long, default_value_t = 1.0)]
    pub clip: f64,
    /// Computes each block again in the backward pass: less memory, more time.
    #[arg(long)]
    pub checkpointing: bool,
    /// Steps between two evaluations on the held-out text.
    #[arg(long, default_value_t = 25)]
    pub eval_every: u64,
    /// Saves the adapter here, and checkpoints in its subfolder `checkpoints`.
    #[arg(long)]
    pub save: Option<PathBuf>,
    /// Steps between two checkpoints; none are saved by default.
    #[arg(long, requires = "save")]
    pub checkpoint_every: Option<u64>,
    /// Resumes from the newest checkpoint, if there is one.
    #[arg(long, requires = "save")]
    pub resume: bool,
    /// Writes the trained model's `input_ids` and `logits` for the first sequence of the held-out text here, as
    /// safetensors.
    #[arg(long)]
    pub logits: Option<PathBuf>,
    /// Draws the losses here, as PNG.
    #[arg(long)]
    pub plot: Option<PathBuf>,
    /// The text that the model continues before and after training; the beginning of the held-out text by default.
    #[arg(long)]
    pub prompt: Option<String>,
    /// Tokens to generate.
    #[arg(long, default_value_t = 60)]
    pub new_tokens: usize,
    /// How freely tokens are drawn; 0 always takes the most probable one.
    #[arg(long, default_value_t = 0.7)]
    pub temperature: f64,
    /// The seed of the batches, the adapter and the drawn tokens.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Threads to compute on; all cores by default.
    #[arg(long)]
    pub threads: Option<usize>,
}

/// The adapter methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Low-rank factors.
    Lora,
    /// The same on quantized weights.
    Qlora,
    /// Low-rank factors, and separate magnitudes for the directions of the weight.
    Dora,
    /// Factors with singular values, some of which training drops: 1.5 times `--rank` at first, `--rank` on average
    /// in the end.
    Adalora,
    /// Scales on keys, values and the input of the last layer of the feed-forward part.
    Ia3,
}

/// How the learning rate continues after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Decay {
    /// It stays the same.
    Constant,
    /// It falls linearly to zero.
    Linear,
    /// It falls along half a cosine wave.
    Cosine,
}

/// The projections of a block.
const PROJECTIONS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// The projection whose input IA3 scales.
const FEEDFORWARD: &str = "down_proj";

impl Arguments {
    /// The settings of the adapter.
    pub fn config(&self) -> Box<dyn AdapterMethod> {
        let targets = match &self.targets {
            Some(names) => TargetModules::from(names.as_slice()),
            None => TargetModules::from(PROJECTIONS),
        };
        let alpha = self.alpha.unwrap_or(2.0 * self.rank as f64);
        match self.method {
            Method::Lora | Method::Qlora | Method::Dora => Box::new(
                LoraConfig::new(self.rank, alpha)
                    .with_dropout(self.dropout)
                    .with_dora(self.method == Method::Dora)
                    .with_targets(targets)
                    .with_task_type("CAUSAL_LM")
                    .with_base_model(&self.model)
                    .with_seed(self.seed),
            ),
            Method::Adalora => {
                let steps = self.steps as usize;
                Box::new(
                    AdaLoraConfig::new(self.rank + self.rank / 2, self.rank, steps)
                        .with_alpha(alpha)
                        .with_dropout(self.dropout)
                        .with_schedule(steps / 10, steps / 3, 5)
                        .with_targets(targets)
                        .with_task_type("CAUSAL_LM")
                        .with_base_model(&self.model)
                        .with_seed(self.seed),
                )
            }
            Method::Ia3 => Box::new(self.ia3()),
        }
    }

    fn ia3(&self) -> Ia3Config {
        let config =
            Ia3Config::new().with_task_type("CAUSAL_LM").with_base_model(&self.model).with_seed(self.seed);
        // Without targets, those that PEFT has for the model type.
        let Some(names) = &self.targets else { return config };
        let feedforward = names.iter().filter(|name| name.ends_with(FEEDFORWARD));
        let feedforward = TargetModules::names(feedforward.cloned());
        config.with_targets(names.as_slice()).with_feedforward(feedforward)
    }

    /// The learning rate schedule.
    pub fn schedule(&self) -> Schedule {
        let schedule = match self.schedule {
            Decay::Constant => Schedule::constant(),
            Decay::Linear => Schedule::linear(self.steps),
            Decay::Cosine => Schedule::cosine(self.steps),
        };
        schedule.with_warm_up(self.steps / 20)
    }
}
