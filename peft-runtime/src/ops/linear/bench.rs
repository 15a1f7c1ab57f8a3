//! Linear layers: frozen, and with LoRA.

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{Linear, Module};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
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

/// Rows, inputs and outputs. Many rows count operations; a single one counts the bytes that are read of the weight.
const PRODUCTS: [(usize, usize, usize); 6] = [
    (256, SIZE, SIZE),
    (256, SIZE, WIDE),
    (256, WIDE, SIZE),
    (1, SIZE, SIZE),
    (1, SIZE, WIDE),
    (1, SIZE, 49_152),
];

fn frozen_as(bencher: Bencher, (rows, inputs, outputs): (usize, usize, usize), dtype: DType) {
    let as_dtype = |tensor: Tensor| tensor.to_dtype(dtype).unwrap();
    let layer = Adapted::new(Linear::new(as_dtype(random(&[outputs, inputs])), None));
    let x = as_dtype(random(&[rows, inputs]));
    let bencher = match rows {
        1 => bencher.counter(BytesCount::new(inputs * outputs * dtype.size_in_bytes())),
        _ => bencher.counter(ItemsCount::new(2 * rows * inputs * outputs)),
    };
    bencher.bench_local(|| layer.forward(&x).unwrap());
}

#[divan::bench(args = PRODUCTS, max_time = 1)]
fn product_f32(bencher: Bencher, sizes: (usize, usize, usize)) {
    frozen_as(bencher, sizes, DType::F32);
}

#[divan::bench(args = PRODUCTS, max_time = 1)]
fn product_bf16(bencher: Bencher, sizes: (usize, usize, usize)) {
    frozen_as(bencher, sizes, DType::BF16);
}

#[divan::bench(args = PRODUCTS, max_time = 1)]
fn product_f16(bencher: Bencher, sizes: (usize, usize, usize)) {
    frozen_as(bencher, sizes, DType::F16);
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
