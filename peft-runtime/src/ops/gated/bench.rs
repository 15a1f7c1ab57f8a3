//! Gated activations.

use candle_core::{Result, Tensor};
use divan::Bencher;
use peft_runtime::nn::{geglu, swiglu};

use super::{ROWS, WIDE, backward, random, variable};

fn candles_swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

fn candles_geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.gelu()? * up
}

#[divan::bench(max_time = 1)]
fn swiglu_forward(bencher: Bencher) {
    let [gate, up] = [(); 2].map(|()| random(&[ROWS, WIDE]));
    bencher.bench_local(|| swiglu(&gate, &up).unwrap());
}

#[divan::bench(max_time = 1)]
fn swiglu_forward_candle(bencher: Bencher) {
    let [gate, up] = [(); 2].map(|()| random(&[ROWS, WIDE]));
    bencher.bench_local(|| candles_swiglu(&gate, &up).unwrap());
}

#[divan::bench(max_time = 1)]
fn swiglu_step(bencher: Bencher) {
    let [gate, up] = [(); 2].map(|()| variable(&[ROWS, WIDE]));
    bencher.bench_local(|| backward(swiglu(&gate, &up)));
}

#[divan::bench(max_time = 1)]
fn swiglu_step_candle(bencher: Bencher) {
    let [gate, up] = [(); 2].map(|()| variable(&[ROWS, WIDE]));
    bencher.bench_local(|| backward(candles_swiglu(&gate, &up)));
}

#[divan::bench(max_time = 1)]
fn geglu_step(bencher: Bencher) {
    let [gate, up] = [(); 2].map(|()| variable(&[ROWS, WIDE]));
    bencher.bench_local(|| backward(geglu(&gate, &up, true)));
}

#[divan::bench(max_time = 1)]
fn geglu_step_candle(bencher: Bencher) {
    let [gate, up] = [(); 2].map(|()| variable(&[ROWS, WIDE]));
    bencher.bench_local(|| backward(candles_geglu(&gate, &up)));
}
