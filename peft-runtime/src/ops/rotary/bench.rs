//! The rotary embedding. candle has heads before positions; this library has positions before heads.

use candle_core::Tensor;
use candle_nn::rotary_emb::{rope, rope_slow};
use divan::Bencher;
use peft_runtime::nn::rotary;

use super::{HEAD, HEADS, ROWS, backward, random, variable};

fn angles() -> (Tensor, Tensor) {
    let angles = random(&[ROWS, HEAD / 2]);
    (angles.cos().unwrap(), angles.sin().unwrap())
}

#[divan::bench(max_time = 1)]
fn forward(bencher: Bencher) {
    let ((cos, sin), x) = (angles(), random(&[1, ROWS, HEADS, HEAD]));
    bencher.bench_local(|| rotary(&x, &cos, &sin).unwrap());
}

#[divan::bench(max_time = 1)]
fn forward_candle(bencher: Bencher) {
    let ((cos, sin), x) = (angles(), random(&[1, HEADS, ROWS, HEAD]));
    bencher.bench_local(|| rope(&x, &cos, &sin).unwrap());
}

#[divan::bench(max_time = 1)]
fn step(bencher: Bencher) {
    let ((cos, sin), x) = (angles(), variable(&[1, ROWS, HEADS, HEAD]));
    bencher.bench_local(|| backward(rotary(&x, &cos, &sin)));
}

#[divan::bench(max_time = 1)]
fn step_candle(bencher: Bencher) {
    let ((cos, sin), x) = (angles(), variable(&[1, HEADS, ROWS, HEAD]));
    bencher.bench_local(|| backward(rope_slow(&x, &cos, &sin)));
}
