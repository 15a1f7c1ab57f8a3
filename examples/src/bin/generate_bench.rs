//! What generating costs: the prompt in one go, then token by token, with an adapter that is not merged.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::quantized::GgmlDType;
use candle_core::{D, DType, Device};
use clap::Parser;
use peft_examples::bench::median;
use peft_examples::float_type::float_type;
use peft_examples::memory::peak_resident_mib;
use peft_examples::progress::{result, say};
use peft_examples::quantization::ggml_type;
use peft_examples::shapes::{ModelShape, RandomWeights, random_tokens};
use peft_examples::threads::on_threads;
use peft_runtime::models::generate::CausalModel;
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use rayon::prelude::*;
use serde_json::json;

/// Measures a language model with random weights that continues a prompt. The last line of standard output is one JSON object.
#[derive(Parser)]
struct Arguments {
    /// The sizes of the model.
    #[arg(long, value_enum, default_value_t = ModelShape::Smol135M)]
    shape: ModelShape,
    /// Quantizes the weights of linear layers to this type.
    #[arg(long, value_parser = ggml_type, value_name = "TYPE")]
    quantized: Option<GgmlDType>,
    /// The precision of the base model and of what it computes: bf16, f16 or f32. Adapters are in f32.
    #[arg(long, value_parser = float_type, value_name = "TYPE", default_value = "f32")]
    dtype: DType,
    /// The rank of the adapter.
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// Tokens in the prompt.
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Tokens that are generated after it.
    #[arg(long, default_value_t = 64)]
    tokens: usize,
    /// How often the prompt is read; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Threads to compute on; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
}

/// How many bytes are read to measure the memory: more than any cache holds.
const READ: usize = 1 << 29;

impl Arguments {
    fn model(&self) -> Result<LlamaModel> {
        let config = self.shape.config()?;
        let weights = RandomWeights::builder(0, self.dtype, &Device::Cpu);
        let mut model = match self.quantized {
            Some(dtype) => LlamaModel::new_quantized(&config, weights, dtype)?,
            None => LlamaModel::new(&config, weights)?,
        };
        let targets = targets!(
            LlamaModel;
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
        );
        let config = LoraConfig::new(self.rank, 2.0 * self.rank as f64).with_targets(targets);
        model.inject_adapter(&config.with_init(LoraInit::Random), "default")?;
        model.eval();
        Ok(model)
    }

    /// Seconds for the prompt, and for each token after it.
    fn generation(&self, model: &LlamaModel) -> Result<(f64, f64)> {
        let prompt = random_tokens(model.config().vocab_size, (1, self.prompt), 0, &Device::Cpu)?;
        let mut prompts = Vec::new();
        for round in 0..=self.rounds {
            let start = Instant::now();
            let mut cache = model.new_cache();
            let logits = no_grad(|| model.next_logits(&prompt, &mut cache))?;
            black_box(logits);
            // The first is left out: memory is fresh and caches are cold.
            if round > 0 {
                prompts.push(start.elapsed().as_secs_f64());
            }
        }
        let mut cache = model.new_cache();
        let mut logits = no_grad(|| model.next_logits(&prompt.narrow(1, 0, 16)?, &mut cache))?;
        let mut steps = Vec::new();
        for _ in 0..self.tokens {
            let start = Instant::now();
            let token = logits.argmax(D::Minus1)?.unsqueeze(0)?;
            logits = no_grad(|| model.next_logits(&token, &mut cache))?;
            steps.push(start.elapsed().as_secs_f64());
        }
        Ok((median(prompts), median(steps)))
    }
}

/// Bytes that are read in a second, by all threads.
fn read_rate() -> f64 {
    let memory = vec![1u64; READ / size_of::<u64>()];
    let part = memory.len().div_ceil(rayon::current_num_threads());
    let rates = (0..5).map(|_| {
        let start = Instant::now();
        let sums =
            memory.par_chunks(part).map(|part| part.iter().fold(0u64, |sum, value| sum.wrapping_add(*value)));
        black_box(sums.reduce(|| 0, u64::wrapping_add));
        READ as f64 / start.elapsed().as_secs_f64()
    });
    rates.fold(0.0, f64::max)
}

/// The bytes that a token reads: all weights of linear layers, and those of the output, which the embedding shares.
fn weight_bytes(model: &LlamaModel, quantized: Option<GgmlDType>, dtype: DType) -> usize {
    let config = model.config();
    let (size, wide) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) =
        (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let block = 2 * size * queries + 2 * size * keys + 3 * size * wide;
    let bytes = |elements: usize, quantized: Option<GgmlDType>| match quantized {
        Some(blocks) => elements / blocks.block_size() * blocks.type_size(),
        None => elements * dtype.size_in_bytes(),
    };
    bytes(config.num_hidden_layers * block, quantized) + bytes(config.vocab_size * size, None)
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    on_threads(arguments.threads, || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.rounds > 0 && arguments.tokens > 0, "`--rounds` and `--tokens` must be at least 1");
    ensure!(arguments.prompt >= 16, "`--prompt` must be at least 16");
    let model = arguments.model()?;
    say("reading memory");
    let rate = read_rate();
    say("generating");
    let (prompt, token) = arguments.generation(&model)?;
    let bytes = weight_bytes(&model, arguments.quantized, arguments.dtype);
    let least = bytes as f64 / rate;
    result(format!("{:.3} s for a prompt of {} tokens", prompt, arguments.prompt));
    result(format!("{:.1} ms a token, {:.1} tokens/s", 1e3 * token, token.recip()));
    result(format!(
        "{:.1} ms to read the weights, {} MB at {:.1} GB/s: {:.0}% of what the memory gives",
        1e3 * least,
        bytes / 1_000_000,
        rate / 1e9,
        100.0 * least / token
    ));
    let summary = json!({
        "prompt_seconds": prompt,
        "token_seconds": token,
        "tokens_per_second": token.recip(),
        "weight_bytes": bytes,
        "read_bytes_per_second": rate,
        "share_of_read_rate": least / token,
        "peak_rss_mb": peak_resident_mib(),
    });
    result(summary.to_string());
    Ok(())
}
