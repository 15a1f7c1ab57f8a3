//! Passes over the data, and what came of them.

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, loss};
use peft_examples::batches::shuffled_batches;
use peft_examples::plot::{Curve, Panel, draw, smoothed};
use peft_examples::progress::bar;
use peft_runtime::prelude::*;

use super::data::Reviews;
use super::model::SentimentModel;

/// What training and evaluation need to know.
pub struct Trainer<'a> {
    pub reviews: &'a Reviews,
    pub batch: usize,
    pub device: Device,
}

/// The losses of all batches, and the accuracies between epochs.
pub struct Curves {
    losses: Vec<f64>,
    /// The number of batches seen, and the accuracy then.
    accuracies: Vec<(usize, f64)>,
}

impl Trainer<'_> {
    /// One pass over the training snippets.
    pub fn epoch(
        &self,
        model: &SentimentModel,
        training: &[usize],
        curves: &mut Curves,
        lr: f64,
        seed: u64,
    ) -> Result<()> {
        let vars = model.trainable_parameters().into_iter().map(|(_, var)| var).collect();
        let mut optimizer = AdamW::new(vars, ParamsAdamW { lr, ..ParamsAdamW::default() })?;
        let batches = shuffled_batches(training, self.batch, seed);
        let progress = bar(batches.len(), "training");
        let total = batches.len() as f64;
        for (step, batch) in batches.into_iter().enumerate() {
            let warm = 0.06 * total;
            let t = step as f64;
            optimizer.set_learning_rate(if t < warm {
                lr * (t + 1.0) / warm
            } else {
                lr * (total - t) / (total - warm)
            });
            let (ids, mask, labels) = self.reviews.batch(&batch, &self.device)?;
            let loss = loss::cross_entropy(&model.forward(&ids, &mask)?, &labels)?;
            optimizer.backward_step(&loss)?;
            curves.losses.push(f64::from(loss.to_scalar::<f32>()?));
            let recent = smoothed(&curves.losses, 50).last().copied().unwrap_or_default();
            progress.set_message(format!("loss {recent:.4}"));
            progress.inc(1);
        }
        progress.finish();
        Ok(())
    }

    /// The share of snippets whose rating is told right.
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
        Self { losses: Vec::new(), accuracies: vec![(0, accuracy)] }
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
        draw(
            path,
            &[
                Panel { title: "Training loss".into(), x: "batch".into(), curves: losses },
                Panel {
                    title: "Accuracy on held-out snippets (%)".into(),
                    x: "batch".into(),
                    curves: vec![curve("accuracy", accuracies)],
                },
            ],
        )
    }
}
