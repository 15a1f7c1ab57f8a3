//! Epochs over the data, and their results.

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device};
use candle_nn::loss;
use peft_examples::batches::shuffled_batches;
use peft_examples::plot::{Curve, Panel, draw, smoothed};
use peft_examples::progress::bar;
use peft_runtime::prelude::*;
use peft_runtime::train::{RankAllocation, Trainer};

use super::data::Reviews;
use super::model::SentimentModel;

/// The snippets in batches, for training and evaluation.
pub struct Batches<'a> {
    pub reviews: &'a Reviews,
    pub batch: usize,
    pub device: Device,
}

/// The losses of all batches, the accuracies between epochs, and AdaLoRA's ranks.
pub struct Curves {
    losses: Vec<f64>,
    /// The number of batches seen, and the accuracy then.
    accuracies: Vec<(usize, f64)>,
    /// The number of batches seen, and the kept rank of each layer.
    ranks: Vec<(usize, Vec<(String, usize)>)>,
}

impl Batches<'_> {
    /// One pass over the training snippets.
    pub fn epoch(
        &self,
        model: &SentimentModel,
        trainer: &mut Trainer,
        training: &[usize],
        curves: &mut Curves,
        seed: u64,
    ) -> Result<()> {
        let batches = shuffled_batches(training, self.batch, seed);
        let progress = bar(batches.len(), "training");
        for batch in batches {
            let (ids, mask, labels) = self.reviews.batch(&batch, &self.device)?;
            let loss = loss::cross_entropy(&model.forward(&ids, &mask)?, &labels)?;
            let report = trainer.step(model, &loss)?;
            curves.losses.push(report.loss);
            let recent = smoothed(&curves.losses, 50).last().copied().unwrap_or_default();
            progress.set_message(match trainer.rank_allocator() {
                Some(allocator) => {
                    curves.add_ranks(allocator);
                    let threshold = allocator.threshold().unwrap_or_default();
                    format!("loss {recent:.4}, {} ranks, threshold {threshold:.1e}", allocator.budget())
                }
                None => format!("loss {recent:.4}"),
            });
            progress.inc(1);
        }
        progress.finish();
        Ok(())
    }

    /// The share of snippets whose rating is predicted correctly.
    pub fn accuracy(&self, model: &SentimentModel, indices: &[usize]) -> Result<f64> {
        let progress = bar(indices.len().div_ceil(self.batch), "evaluating");
        let mut right = 0.0;
        for batch in indices.chunks(self.batch) {
            let (ids, mask, labels) = self.reviews.batch(batch, &self.device)?;
            let told = no_grad(|| model.forward(&ids, &mask))?.argmax(1)?;
            right += f64::from(told.eq(&labels)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?);
            progress.inc(1);
        }
        progress.finish_and_clear();
        Ok(right / indices.len() as f64)
    }
}

impl Curves {
    pub fn new(accuracy: f64) -> Self {
        Self { losses: Vec::new(), accuracies: vec![(0, accuracy)], ranks: Vec::new() }
    }

    /// Records the ranks every tenth batch.
    fn add_ranks(&mut self, allocator: &dyn RankAllocation) {
        if self.losses.len().is_multiple_of(10) {
            let ranks = allocator.ranks().into_iter().map(|(path, rank)| (path.to_string(), rank));
            self.ranks.push((self.losses.len(), ranks.collect()));
        }
    }

    /// A curve for each layer that AdaLoRA allocates ranks to.
    fn rank_curves(&self) -> Vec<Curve> {
        let Some((_, layers)) = self.ranks.first() else { return Vec::new() };
        let points = |layer: usize| {
            let rank = |(batch, ranks): &(usize, Vec<(String, usize)>)| {
                Some((*batch as f64, ranks.get(layer)?.1 as f64))
            };
            self.ranks.iter().filter_map(rank).collect()
        };
        let curve = |(layer, (name, _)): (usize, &(String, usize))| Curve {
            name: name.trim_start_matches("bert.encoder.").to_owned(),
            points: points(layer),
        };
        layers.iter().enumerate().map(curve).collect()
    }

    pub fn end_epoch(&mut self, accuracy: f64) {
        self.accuracies.push((self.losses.len(), accuracy));
    }

    pub fn last_accuracy(&self) -> f64 {
        self.accuracies.last().map_or(0.0, |(_, accuracy)| *accuracy)
    }

    pub fn draw(&self, path: &Path) -> Result<()> {
        let numbered = |values: &[f64]| (1..).map(f64::from).zip(values.iter().copied()).collect();
        let curve = |name: &str, points| Curve { name: name.to_owned(), points };
        let losses = vec![
            curve("batch", numbered(&self.losses)),
            curve("mean of 50", numbered(&smoothed(&self.losses, 50))),
        ];
        let accuracies =
            self.accuracies.iter().map(|(step, accuracy)| (*step as f64, 100.0 * accuracy)).collect();
        let mut panels = vec![
            Panel { title: "Training loss".into(), x: "batch".into(), curves: losses },
            Panel {
                title: "Accuracy on held-out snippets (%)".into(),
                x: "batch".into(),
                curves: vec![curve("accuracy", accuracies)],
            },
        ];
        let ranks = self.rank_curves();
        if !ranks.is_empty() {
            panels.push(Panel { title: "Ranks kept".into(), x: "batch".into(), curves: ranks });
        }
        draw(path, &panels)
    }
}
