//! Dropout on tensors of the size of a small encoder's activations, and on the probabilities of its attention.

use candle_core::{Result, Tensor};
use candle_nn::Module;
use divan::Bencher;
use peft_runtime::nn::{AttentionOptions, Dropout, attention};
use peft_runtime::prelude::*;

use super::{backward, random, variable};

/// Sequences, tokens of each, heads, and the size of a head.
const SHAPE: [usize; 4] = [32, 64, 12, 32];

#[derive(Injectable)]
struct Model {
    dropout: Dropout,
}

fn model(training: bool) -> Model {
    let mut model = Model { dropout: Dropout::new(0.1).unwrap() };
    if training {
        model.train();
    }
    model
}

fn attended(model: &Model, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (scale, dropout) = ((SHAPE[3] as f64).sqrt().recip(), model.dropout.draw()?);
    attention(q, k, v, &AttentionOptions { scale, causal: false, mask: None, dropout })
}

#[divan::bench(max_time = 1)]
fn forward(bencher: Bencher) {
    let (model, x) = (model(true), random(&SHAPE));
    bencher.bench_local(|| model.dropout.forward(&x).unwrap());
}

#[divan::bench(max_time = 1)]
fn forward_candle(bencher: Bencher) {
    let x = random(&SHAPE);
    bencher.bench_local(|| candle_nn::ops::dropout(&x, 0.1).unwrap());
}

#[divan::bench(max_time = 1)]
fn step(bencher: Bencher) {
    let (model, x) = (model(true), variable(&SHAPE));
    bencher.bench_local(|| backward(model.dropout.forward(&x)));
}

#[divan::bench(max_time = 1)]
fn step_candle(bencher: Bencher) {
    let x = variable(&SHAPE);
    bencher.bench_local(|| backward(candle_nn::ops::dropout(&x, 0.1)));
}

#[divan::bench(args = [false, true], max_time = 1)]
fn attention_step(bencher: Bencher, training: bool) {
    let (model, [q, k, v]) = (model(training), [(); 3].map(|()| variable(&SHAPE)));
    bencher.bench_local(|| backward(attended(&model, &q, &k, &v)));
}
