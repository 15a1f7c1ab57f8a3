//! Linear layers: frozen, and with LoRA.

use candle_core::{Result, Tensor, Var};
use candle_nn::{Linear, Module};
use divan::Bencher;
use peft_runtime::prelude::*;

use super::{ROWS, SIZE, WIDE, backward, random, variable};

/// Inputs and outputs: key, up, down.
const SIZES: [(usize, usize); 3] = [(SIZE, 192), (SIZE, WIDE), (WIDE, SIZE)];

const RANK: usize = 8;

#[derive(Injectable)]
struct Model {
    layer: Adapted<Linear>,
}

fn linear((inputs, outputs): (usize, usize)) -> Linear {
    Linear::new(random(&[outputs, inputs]), None)
}

fn with_lora(size: (usize, usize)) -> Adapted<Linear> {
    let mut model = Model { layer: linear(size).into() };
    let config =
        LoraConfig::new(RANK, 16.0).with_init(LoraInit::Random).with_targets(targets!(Model; "layer"));
    model.inject_adapter(&config, "default").unwrap();
    model.layer
}

/// A linear layer with LoRA, composed from candle's layers.
struct Composed {
    base: Linear,
    a: Var,
    b: Var,
}

impl Composed {
    fn new((inputs, outputs): (usize, usize)) -> Self {
        let base = linear((inputs, outputs));
        Self { base, a: variable(&[RANK, inputs]), b: variable(&[outputs, RANK]) }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = x.matmul(&self.a.t()?)?;
        self.base.forward(x)? + (hidden.matmul(&self.b.t()?)? * 2.0)?
    }
}

#[divan::bench(args = SIZES, max_time = 1)]
fn frozen_forward(bencher: Bencher, size: (usize, usize)) {
    let (layer, x) = (Adapted::new(linear(size)), random(&[ROWS, size.0]));
    bencher.bench_local(|| layer.forward(&x).unwrap());
}

#[divan::bench(args = SIZES, max_time = 1)]
fn frozen_forward_candle(bencher: Bencher, size: (usize, usize)) {
    let (layer, x) = (linear(size), random(&[ROWS, size.0]));
    bencher.bench_local(|| layer.forward(&x).unwrap());
}

#[divan::bench(args = SIZES, max_time = 1)]
fn frozen_step(bencher: Bencher, size: (usize, usize)) {
    let (layer, x) = (Adapted::new(linear(size)), variable(&[ROWS, size.0]));
    bencher.bench_local(|| backward(layer.forward(&x)));
}

#[divan::bench(args = SIZES, max_time = 1)]
fn frozen_step_candle(bencher: Bencher, size: (usize, usize)) {
    let (layer, x) = (linear(size), variable(&[ROWS, size.0]));
    bencher.bench_local(|| backward(layer.forward(&x)));
}

#[divan::bench(args = SIZES, max_time = 1)]
fn lora_forward(bencher: Bencher, size: (usize, usize)) {
    let (layer, x) = (with_lora(size), random(&[ROWS, size.0]));
    bencher.bench_local(|| no_grad(|| layer.forward(&x).unwrap()));
}

#[divan::bench(args = SIZES, max_time = 1)]
fn lora_forward_candle(bencher: Bencher, size: (usize, usize)) {
    let (layer, x) = (Composed::new(size), random(&[ROWS, size.0]));
    bencher.bench_local(|| layer.forward(&x).unwrap());
}

#[divan::bench(args = SIZES, max_time = 1)]
fn lora_step(bencher: Bencher, size: (usize, usize)) {
    let (layer, x) = (with_lora(size), variable(&[ROWS, size.0]));
    bencher.bench_local(|| backward(layer.forward(&x)));
}

#[divan::bench(args = SIZES, max_time = 1)]
fn lora_step_candle(bencher: Bencher, size: (usize, usize)) {
    let (layer, x) = (Composed::new(size), variable(&[ROWS, size.0]));
    bencher.bench_local(|| backward(layer.forward(&x)));
}
