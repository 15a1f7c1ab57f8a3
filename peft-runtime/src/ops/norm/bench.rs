//! RMS norm and layer norm.

use candle_core::Tensor;
use candle_nn::ops::layer_norm_slow;
use candle_nn::{LayerNorm, Module, RmsNorm};
use divan::Bencher;
use peft_runtime::Adapted;

use super::{ROWS, SIZE, backward, random, variable};

const EPS: f64 = 1e-5;

fn rms() -> RmsNorm {
    RmsNorm::new(random(&[SIZE]), EPS)
}

fn parameters() -> (Tensor, Tensor) {
    (random(&[SIZE]), random(&[SIZE]))
}

fn layer() -> LayerNorm {
    let (weight, bias) = parameters();
    LayerNorm::new(weight, bias, EPS)
}

#[divan::bench(max_time = 1)]
fn rms_forward(bencher: Bencher) {
    let (norm, x) = (Adapted::new(rms()), random(&[ROWS, SIZE]));
    bencher.bench_local(|| norm.forward(&x).unwrap());
}

#[divan::bench(max_time = 1)]
fn rms_forward_candle(bencher: Bencher) {
    let (norm, x) = (rms(), random(&[ROWS, SIZE]));
    bencher.bench_local(|| norm.forward(&x).unwrap());
}

#[divan::bench(max_time = 1)]
fn rms_step(bencher: Bencher) {
    let (norm, x) = (Adapted::new(rms()), variable(&[ROWS, SIZE]));
    bencher.bench_local(|| backward(norm.forward(&x)));
}

#[divan::bench(max_time = 1)]
fn rms_step_candle(bencher: Bencher) {
    let (norm, x) = (rms(), variable(&[ROWS, SIZE]));
    bencher.bench_local(|| backward(norm.forward_diff(&x)));
}

#[divan::bench(max_time = 1)]
fn layer_forward(bencher: Bencher) {
    let (norm, x) = (Adapted::new(layer()), random(&[ROWS, SIZE]));
    bencher.bench_local(|| norm.forward(&x).unwrap());
}

#[divan::bench(max_time = 1)]
fn layer_forward_candle(bencher: Bencher) {
    let (norm, x) = (layer(), random(&[ROWS, SIZE]));
    bencher.bench_local(|| norm.forward(&x).unwrap());
}

#[divan::bench(max_time = 1)]
fn layer_step(bencher: Bencher) {
    let (norm, x) = (Adapted::new(layer()), variable(&[ROWS, SIZE]));
    bencher.bench_local(|| backward(norm.forward(&x)));
}

#[divan::bench(max_time = 1)]
fn layer_step_candle(bencher: Bencher) {
    let ((weight, bias), x) = (parameters(), variable(&[ROWS, SIZE]));
    bencher.bench_local(|| backward(layer_norm_slow(&x, &weight, &bias, EPS as f32)));
}
