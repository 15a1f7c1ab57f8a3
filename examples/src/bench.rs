//! What the programs that measure a training step share: their options and their output.

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

use crate::memory::peak_resident_mib;
use crate::progress::result;
use crate::shapes::ModelShape;

/// The first steps, which are left out: memory is fresh and caches are cold.
const LEFT_OUT: usize = 2;

/// What is measured.
#[derive(Args, Clone, Debug)]
pub struct StepOptions {
    /// The sizes of the model; its weights are random.
    #[arg(long, value_enum, default_value_t = ModelShape::Smol135M)]
    pub shape: ModelShape,
    /// Sequences in a batch.
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
    /// Tokens in a sequence.
    #[arg(long, default_value_t = 256)]
    pub seq: usize,
    /// Steps to take; the first two are not measured.
    #[arg(long, default_value_t = 10)]
    pub steps: usize,
    /// The rank of the adapter.
    #[arg(long, default_value_t = 8)]
    pub rank: usize,
    /// The learning rate.
    #[arg(long, default_value_t = 1e-4)]
    pub lr: f64,
    /// Threads to compute on; all cores by default.
    #[arg(long)]
    pub threads: Option<usize>,
    /// The seed of weights and tokens.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Ends the output with one JSON object.
    #[arg(long)]
    pub json: bool,
}

impl StepOptions {
    /// The tokens of a step.
    pub fn tokens(&self) -> usize {
        self.batch * self.seq
    }

    /// Checks that there is something to measure.
    ///
    /// # Errors
    /// If there are too few steps, or no tokens to predict.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.steps > LEFT_OUT,
            "`--steps` must be above {LEFT_OUT}: the first steps are not measured"
        );
        ensure!(self.batch > 0 && self.seq > 1, "a batch must have at least one sequence of two tokens");
        Ok(())
    }
}

/// The time one step took.
#[derive(Clone, Copy, Debug)]
pub struct StepTime {
    /// All of it.
    pub seconds: f64,
    /// The part of it spent in matrix products, where that is known.
    pub products: Option<f64>,
}

/// Prints the time the steps took: lines for people and, with `--json`, one object.
pub fn report(options: &StepOptions, steps: &[StepTime]) {
    let measured = steps.get(LEFT_OUT..).unwrap_or_default();
    let seconds = median(measured.iter().map(|step| step.seconds).collect());
    let all: f64 = measured.iter().map(|step| step.seconds).sum();
    let products: Option<f64> = measured.iter().map(|step| step.products).sum();
    let share = products.map(|products| products / all);
    let rate = options.tokens() as f64 / seconds;
    let memory = peak_resident_mib();

    let shape = options.shape.name();
    result(format!("{shape}, {} × {} tokens, rank {}", options.batch, options.seq, options.rank));
    result(format!("{seconds:.3} s a step (median of {}), {rate:.0} tokens/s", measured.len()));
    if let Some(memory) = memory {
        result(format!("{memory} MiB at most"));
    }
    if let Some(share) = share {
        result(format!("{:.0}% of the time in matrix products", 100.0 * share));
    }
    if options.json {
        let summary = json!({
            "seconds_per_step": seconds,
            "peak_rss_mb": memory,
            "tokens_per_second": rate,
            "matmul_share": share,
        });
        result(summary.to_string());
    }
}

/// The middle value, or the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.as_slice() {
        [] => f64::NAN,
        values if values.len().is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
        values => values[middle],
    }
}
