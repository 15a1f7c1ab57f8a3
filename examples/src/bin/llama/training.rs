//! The run: steps, evaluations on the held-out text, checkpoints, curves.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use peft_examples::memory::peak_resident_mib;
use peft_examples::plot::{Curve, Panel, draw, smoothed};
use peft_examples::progress::{bar, say};
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use peft_runtime::train::{AdamW, RankAllocator, Trainer};
use serde_json::json;

use super::arguments::{Arguments, Method};
use super::data::Data;

/// The number of batches over which the displayed loss is averaged.
const WINDOW: usize = 20;

/// A training run.
pub struct Run<'a> {
    arguments: &'a Arguments,
    data: &'a Data,
    trainer: Trainer,
    /// The number of steps taken, and the loss of the batch then.
    losses: Vec<(f64, f64)>,
    /// The number of steps taken, and the loss on the held-out text then.
    held_out: Vec<(f64, f64)>,
    /// The tokens of this run's batches, and the seconds they took.
    tokens: usize,
    seconds: f64,
}

impl<'a> Run<'a> {
    /// A run at its beginning or, with `--resume`, at the newest checkpoint.
    pub fn new(arguments: &'a Arguments, data: &'a Data, model: &LlamaModel) -> Result<Self> {
        let optimizer = AdamW::for_model(model, arguments.lr)?;
        let Arguments { batch, seq, seed, .. } = *arguments;
        let notes = json!({"batch": batch, "seq": seq, "seed": seed});
        let mut trainer = Trainer::new(model, optimizer, arguments.schedule())?
            .with_clipping(arguments.clip)
            .with_accumulation(arguments.accumulate)
            .with_notes(notes.clone());
        if arguments.method == Method::Adalora {
            trainer = trainer.with_rank_allocator(RankAllocator::new(model, "default")?);
        }
        if let Some(folder) = &arguments.save {
            // Without `--checkpoint-every` the folder is only there to resume from.
            let every = arguments.checkpoint_every.unwrap_or(u64::MAX);
            trainer = trainer.with_checkpoints(folder.join("checkpoints"), every);
        }
        if arguments.resume {
            match trainer.resume(model)? {
                Some(checkpoint) => {
                    let found = &checkpoint.state().notes;
                    ensure!(*found == notes, "the checkpoint's run had {found}, but this one has {notes}");
                    say(format!("resuming from {}", checkpoint.folder().display()));
                }
                None => say("there is no checkpoint yet: starting from the beginning"),
            }
        }
        Ok(Self { arguments, data, trainer, losses: vec![], held_out: vec![], tokens: 0, seconds: 0.0 })
    }

    /// Takes all remaining steps, with evaluations on the held-out text in between.
    pub fn train(&mut self, model: &mut LlamaModel) -> Result<()> {
        let steps = self.arguments.steps;
        let progress = bar(steps as usize, "training");
        progress.set_position(self.trainer.steps());
        model.train();
        while self.trainer.steps() < steps {
            let start = Instant::now();
            let Arguments { batch, seed, .. } = *self.arguments;
            let tokens = self.data.batch(self.trainer.batches(), batch, seed)?;
            let loss = model.loss(&tokens, &tokens)?;
            let report = self.trainer.step(&*model, &loss)?;
            drop(loss);
            let seconds = start.elapsed().as_secs_f64();
            self.tokens += tokens.elem_count();
            self.seconds += seconds;
            self.losses.push((report.step as f64, report.loss));
            let rate = tokens.elem_count() as f64 / seconds;
            progress.set_message(format!("{}, {rate:.0} tokens/s{}", self.recent_loss(), memory()));
            if !report.updated {
                continue;
            }
            progress.set_position(report.step);
            if report.step < steps && report.step.is_multiple_of(self.arguments.eval_every.max(1)) {
                let loss = self.evaluate(model)?;
                progress.suspend(|| say(format!("step {}: held-out loss {loss:.4}", report.step)));
            }
        }
        progress.finish();
        Ok(())
    }

    /// The mean loss on the held-out text, which is recorded for the plot; the model is in training mode afterwards.
    pub fn evaluate(&mut self, model: &mut LlamaModel) -> Result<f64> {
        model.eval();
        let (mut sum, mut count) = (0.0, 0.0);
        for tokens in self.data.held_out() {
            let tokens = tokens?;
            let foretold = (tokens.elem_count() - 1) as f64;
            let loss = no_grad(|| model.loss(&tokens, &tokens))?;
            sum += foretold * f64::from(loss.to_scalar::<f32>()?);
            count += foretold;
        }
        model.train();
        let loss = sum / count;
        self.held_out.push((self.trainer.steps() as f64, loss));
        Ok(loss)
    }

    fn recent_loss(&self) -> String {
        let last = &self.losses[self.losses.len().saturating_sub(WINDOW)..];
        let mean = last.iter().map(|(_, loss)| loss).sum::<f64>() / last.len() as f64;
        format!("loss {mean:.3}")
    }

    /// The tokens of this run's batches per second; `None` if there were none.
    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.tokens as f64 / self.seconds)
    }

    /// The seconds of all batches of this run.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// The rank that each layer has kept, if the method allocates ranks.
    pub fn ranks(&self) -> Option<String> {
        let allocator = self.trainer.rank_allocator()?;
        let mut table = format!("ranks, {} in all:", allocator.budget());
        for (path, rank) in allocator.ranks() {
            table.push_str(&format!("\n  {path:<40} {rank:>3} {}", "#".repeat(rank)));
        }
        Some(table)
    }

    /// Draws the losses.
    pub fn draw(&self, path: &Path) -> Result<()> {
        let values: Vec<f64> = self.losses.iter().map(|(_, loss)| *loss).collect();
        let steps = self.losses.iter().map(|(step, _)| *step);
        let mean: Vec<(f64, f64)> = steps.zip(smoothed(&values, WINDOW)).collect();
        let curve =
            |name: &str, points: &[(f64, f64)]| Curve { name: name.to_owned(), points: points.to_vec() };
        let curves = vec![
            curve("batch", &self.losses),
            curve(&format!("mean of {WINDOW}"), &mean),
            curve("held out", &self.held_out),
        ];
        draw(path, &[Panel { title: "Loss".into(), x: "step".into(), curves }])
    }
}

/// The most memory that the process has used so far, where the system reports it.
fn memory() -> String {
    peak_resident_mib().map(|memory| format!(", {memory} MiB")).unwrap_or_default()
}
