//! The loss of a language model, from hidden states and the output layer's weight.

use candle_core::{Device, Result, Tensor};
use candle_nn::loss::cross_entropy;
use divan::Bencher;
use peft_runtime::nn::linear_cross_entropy;

use super::{ROWS, SIZE, backward, random, variable};

const VOCABULARY: usize = 49_152;

fn targets() -> Tensor {
    let targets: Vec<u32> = (0..ROWS).map(|row| (row * 191 % VOCABULARY) as u32).collect();
    Tensor::from_vec(targets, ROWS, &Device::Cpu).unwrap()
}

fn candles(hidden: &Tensor, weight: &Tensor, targets: &Tensor) -> Result<Tensor> {
    cross_entropy(&hidden.matmul(&weight.t()?)?, targets)
}

#[divan::bench(max_time = 2)]
fn linear_cross_entropy_forward(bencher: Bencher) {
    let (hidden, weight, targets) = (random(&[ROWS, SIZE]), random(&[VOCABULARY, SIZE]), targets());
    bencher.bench_local(|| linear_cross_entropy(&hidden, &weight, &targets, None).unwrap());
}

#[divan::bench(max_time = 2)]
fn linear_cross_entropy_forward_candle(bencher: Bencher) {
    let (hidden, weight, targets) = (random(&[ROWS, SIZE]), random(&[VOCABULARY, SIZE]), targets());
    bencher.bench_local(|| candles(&hidden, &weight, &targets).unwrap());
}

#[divan::bench(max_time = 2)]
fn linear_cross_entropy_step(bencher: Bencher) {
    let (hidden, weight, targets) = (variable(&[ROWS, SIZE]), random(&[VOCABULARY, SIZE]), targets());
    bencher.bench_local(|| backward(linear_cross_entropy(&hidden, &weight, &targets, None)));
}

#[divan::bench(max_time = 2)]
fn linear_cross_entropy_step_candle(bencher: Bencher) {
    let (hidden, weight, targets) = (variable(&[ROWS, SIZE]), random(&[VOCABULARY, SIZE]), targets());
    bencher.bench_local(|| backward(candles(&hidden, &weight, &targets)));
}
