//! One base, many adapters: what mixed batches cost from several threads, compared with one adapter and with none.

mod timings;

use std::path::PathBuf;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use peft_examples::float_type::float_type;
use peft_examples::memory::peak_resident_mib;
use peft_examples::progress::{bar, result, say};
use peft_examples::shapes::{RandomWeights, config_of};
use peft_runtime::models::generate::CausalModel;
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use timings::Timings;

/// Serves prompts of many adapters in mixed batches, from several threads, and prints latency and throughput.
///
/// A request is one forward pass over a batch of prompts that gives the logits of each next token.
#[derive(Parser)]
struct Arguments {
    /// The folder of a model of the Llama family; without it, a small model gets random weights.
    #[arg(long)]
    model: Option<PathBuf>,
    /// The hidden size of the random model, a multiple of 16.
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// The number of blocks of the random model.
    #[arg(long, default_value_t = 4)]
    blocks: usize,
    /// The precision of the base model and of what it computes: bf16, f16 or f32. Adapters are in f32.
    #[arg(long, value_parser = float_type, value_name = "TYPE", default_value = "f32")]
    dtype: DType,
    /// The number of adapters.
    #[arg(long, default_value_t = 64)]
    adapters: usize,
    /// The rank of each adapter.
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// The threads that send requests.
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// The prompts of a batch, each of which chooses its own adapter.
    #[arg(long, default_value_t = 16)]
    rows: usize,
    /// The tokens of a prompt.
    #[arg(long, default_value_t = 32)]
    length: usize,
    /// The requests of a thread in each round.
    #[arg(long, default_value_t = 20)]
    requests: usize,
    /// How often all three ways are measured in turn, after a round that does not count.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The seed of the random weights, the adapters, the prompts and the choice of adapters.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Arguments {
    fn check(&self) -> Result<()> {
        let numbers = [self.adapters, self.threads, self.rows, self.length, self.requests, self.rounds];
        ensure!(numbers.iter().all(|number| *number > 0), "every number has to be at least 1");
        let fits = self.size > 0 && self.size.is_multiple_of(16);
        ensure!(fits, "`--size` is {}; it has to be a multiple of 16", self.size);
        Ok(())
    }

    /// The base model.
    fn base(&self) -> Result<LlamaModel> {
        if let Some(folder) = &self.model {
            return Ok(LlamaModel::from_folder(folder, self.dtype, &Device::Cpu)?);
        }
        let config = config_of("llama", [4096, self.size, 4 * self.size, self.blocks, 8, 4])?;
        Ok(LlamaModel::new(&config, RandomWeights::builder(self.seed, self.dtype, &Device::Cpu))?)
    }
}

fn name_of(adapter: usize) -> String {
    format!("adapter-{adapter:02}")
}

/// Injects the adapters. Their factors are random, as if they were trained: a fresh adapter changes nothing.
fn add_adapters(model: &mut LlamaModel, arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    let mut elements = 0;
    for adapter in 0..arguments.adapters {
        let config = LoraConfig::new(arguments.rank, arguments.rank as f64)
            .with_targets(targets!(LlamaModel; "q_proj", "v_proj"))
            .with_init(LoraInit::Random)
            .with_seed(arguments.seed + adapter as u64);
        elements += model.inject_adapter(&config, &name_of(adapter))?.elements;
    }
    say(format!(
        "{} adapters of rank {} with {elements} numbers in all, injected in {:.2} s",
        arguments.adapters,
        arguments.rank,
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Prompts, and the adapter of each.
struct Batch {
    /// `[rows, length]`.
    ids: Tensor,
    adapters: Vec<String>,
}

impl Batch {
    fn draw(random: &mut ChaCha8Rng, vocabulary: usize, arguments: &Arguments) -> Result<Self> {
        let (rows, length) = (arguments.rows, arguments.length);
        let ids: Vec<u32> = (0..rows * length).map(|_| random.random_range(0..vocabulary) as u32).collect();
        let adapters = (0..rows).map(|_| name_of(random.random_range(0..arguments.adapters))).collect();
        Ok(Self { ids: Tensor::from_vec(ids, (rows, length), &Device::Cpu)?, adapters })
    }
}

/// The logits of each next token, `[rows, vocabulary]`, by the adapters that are active or routed.
fn next_logits(model: &LlamaModel, ids: &Tensor) -> candle_core::Result<Tensor> {
    no_grad(|| model.next_logits(ids, &mut model.new_cache()))
}

/// How the rows of a batch are computed.
#[derive(Clone, Copy)]
enum Way {
    /// Only the base model.
    Base,
    /// One adapter, the same for all rows.
    One,
    /// For each row, the adapter that it names.
    Mixed,
}

impl Way {
    const ALL: [Self; 3] = [Self::Base, Self::One, Self::Mixed];

    fn label(self, arguments: &Arguments) -> String {
        match self {
            Self::Base => "no adapter".to_owned(),
            Self::One => "one adapter".to_owned(),
            Self::Mixed => format!("{} adapters, mixed rows", arguments.adapters),
        }
    }

    fn prepare(self, model: &mut LlamaModel) -> Result<()> {
        match self {
            Self::Base => model.disable_adapters(),
            Self::One => {
                model.enable_adapters();
                model.set_adapter(&name_of(0))?;
            }
            Self::Mixed => model.enable_adapters(),
        }
        Ok(())
    }

    fn compute(self, model: &LlamaModel, batch: &Batch) -> Result<Tensor> {
        Ok(match self {
            Self::Base | Self::One => next_logits(model, &batch.ids)?,
            Self::Mixed => {
                model.with_adapter_rows(&batch.adapters, |model| next_logits(model, &batch.ids))??
            }
        })
    }
}

fn largest(tensor: &Tensor) -> candle_core::Result<f32> {
    tensor.to_dtype(DType::F32)?.abs()?.max_all()?.to_scalar::<f32>()
}

/// Fails unless each row of a mixed batch is what its adapter computes in a batch of its own, and differs from what the
/// base model computes.
fn check_rows(model: &mut LlamaModel, arguments: &Arguments) -> Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(arguments.seed);
    let batch = Batch::draw(&mut random, model.config().vocab_size, arguments)?;
    Way::Base.prepare(model)?;
    let base = Way::Base.compute(model, &batch)?;
    Way::Mixed.prepare(model)?;
    let mixed = Way::Mixed.compute(model, &batch)?;
    // The order of sums depends on the batch; in half precision other roundings follow from it.
    let unit = if arguments.dtype == DType::F32 { 1e-4 } else { 2e-2 };
    let tolerance = unit * largest(&mixed)?;
    for (row, adapter) in batch.adapters.iter().enumerate() {
        model.set_adapter(adapter)?;
        let alone = next_logits(model, &batch.ids.narrow(0, row, 1)?)?;
        let mixed = mixed.narrow(0, row, 1)?;
        let off = largest(&(&mixed - &alone)?)?;
        ensure!(
            off <= tolerance,
            "row {row} is off by {off} from what `{adapter}` computes in a batch of its own"
        );
        let moved = largest(&(&mixed - base.narrow(0, row, 1)?)?)?;
        ensure!(moved > tolerance, "row {row} is the base's, and `{adapter}` does not act");
    }
    say("each row of a mixed batch is what its adapter computes in a batch of its own");
    Ok(())
}

/// The requests of one thread, one after the other.
fn client(model: &LlamaModel, way: Way, arguments: &Arguments, stream: u64) -> Result<Vec<Duration>> {
    let mut random = ChaCha8Rng::seed_from_u64(arguments.seed);
    random.set_stream(stream);
    let mut latencies = Vec::with_capacity(arguments.requests);
    for _ in 0..arguments.requests {
        let batch = Batch::draw(&mut random, model.config().vocab_size, arguments)?;
        let start = Instant::now();
        way.compute(model, &batch)?;
        latencies.push(start.elapsed());
    }
    Ok(latencies)
}

fn joined(client: ScopedJoinHandle<'_, Result<Vec<Duration>>>) -> Result<Vec<Duration>> {
    match client.join() {
        Ok(latencies) => latencies,
        Err(_) => bail!("a thread panicked"),
    }
}

/// One round of requests from all threads at once: the model is shared, and each thread routes its own batches.
fn measure(model: &LlamaModel, way: Way, arguments: &Arguments) -> Result<Timings> {
    let start = Instant::now();
    let latencies = thread::scope(|scope| {
        let streams = 1..=arguments.threads as u64;
        let clients: Vec<_> =
            streams.map(|stream| scope.spawn(move || client(model, way, arguments, stream))).collect();
        clients.into_iter().map(joined).collect::<Result<Vec<_>>>()
    })?;
    Ok(Timings { latencies: latencies.concat(), wall: start.elapsed() })
}

/// All rounds; the ways take turns, so that a machine that slows down slows down all of them.
fn measure_all(model: &mut LlamaModel, arguments: &Arguments) -> Result<Vec<(Way, Timings)>> {
    let mut all: Vec<(Way, Timings)> = Way::ALL.map(|way| (way, Timings::default())).into();
    let progress = bar((arguments.rounds + 1) * all.len(), "measuring");
    for round in 0..=arguments.rounds {
        for (way, timings) in &mut all {
            way.prepare(model)?;
            let measured = measure(model, *way, arguments)?;
            // The first round warms caches and memory.
            if round > 0 {
                timings.latencies.extend(measured.latencies);
                timings.wall += measured.wall;
            }
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    Ok(all)
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    arguments.check()?;
    let mut model = arguments.base()?;
    add_adapters(&mut model, &arguments)?;
    check_rows(&mut model, &arguments)?;
    let all = measure_all(&mut model, &arguments)?;

    let Arguments { threads, rows, length, .. } = &arguments;
    result(format!("{threads} threads, batches of {rows} prompts of {length} tokens"));
    result(format!(
        "{:<26}{:>10}{:>10}{:>10}{:>10}",
        "rows computed by", "p50 ms", "p95 ms", "rows/s", "of none"
    ));
    let none = all.first().map_or(0.0, |(_, timings)| timings.rows_per_second(*rows));
    for (way, timings) in &all {
        let rate = timings.rows_per_second(*rows);
        result(format!(
            "{:<26}{:>10.1}{:>10.1}{rate:>10.1}{:>9.0}%",
            way.label(&arguments),
            timings.percentile(0.5),
            timings.percentile(0.95),
            100.0 * rate / none
        ));
    }
    peak_resident_mib().inspect(|peak| say(format!("{peak} MiB at most")));
    Ok(())
}
