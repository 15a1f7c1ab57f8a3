//! Causal attention with grouped heads, compared with the composition of candle's ops that has a gradient.

use candle_core::{D, Device, Result, Tensor};
use candle_nn::ops::softmax;
use divan::Bencher;
use peft_runtime::nn::{AttentionOptions, attention};

use super::{HEAD, HEADS, ROWS, SHARED, backward, random, variable};

const LENGTHS: [usize; 2] = [ROWS, 4 * ROWS];

/// How many heads of queries share a head of keys and values.
const TIMES: usize = HEADS / SHARED;

fn ours(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let options =
        AttentionOptions { scale: (HEAD as f64).sqrt().recip(), causal: true, mask: None, dropout: None };
    attention(q, k, v, &options)
}

/// −∞ above the diagonal.
fn mask(length: usize) -> Tensor {
    let value = |place: usize| if place % length > place / length { f32::NEG_INFINITY } else { 0.0 };
    let values: Vec<f32> = (0..length * length).map(value).collect();
    Tensor::from_vec(values, (length, length), &Device::Cpu).unwrap()
}

/// For tensors `[1, heads, length, size]`.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let repeated = |heads: &Tensor| {
        let (batch, count, length, size) = heads.dims4()?;
        Tensor::cat(&[heads; TIMES], 2)?.reshape((batch, count * TIMES, length, size))
    };
    let scores = (q.matmul(&repeated(k)?.t()?)? * (HEAD as f64).sqrt().recip())?;
    softmax(&scores.broadcast_add(mask)?, D::Minus1)?.matmul(&repeated(v)?)
}

#[divan::bench(args = LENGTHS, max_time = 1)]
fn forward(bencher: Bencher, length: usize) {
    let [q, k, v] = [HEADS, SHARED, SHARED].map(|heads| random(&[1, length, heads, HEAD]));
    bencher.bench_local(|| ours(&q, &k, &v).unwrap());
}

#[divan::bench(args = LENGTHS, max_time = 1)]
fn forward_candle(bencher: Bencher, length: usize) {
    let [q, k, v] = [HEADS, SHARED, SHARED].map(|heads| random(&[1, heads, length, HEAD]));
    let mask = mask(length);
    bencher.bench_local(|| composed(&q, &k, &v, &mask).unwrap());
}

#[divan::bench(args = LENGTHS, max_time = 1)]
fn step(bencher: Bencher, length: usize) {
    let [q, k, v] = [HEADS, SHARED, SHARED].map(|heads| variable(&[1, length, heads, HEAD]));
    bencher.bench_local(|| backward(ours(&q, &k, &v)));
}

#[divan::bench(args = LENGTHS, max_time = 1)]
fn step_candle(bencher: Bencher, length: usize) {
    let [q, k, v] = [HEADS, SHARED, SHARED].map(|heads| variable(&[1, heads, length, HEAD]));
    let mask = mask(length);
    bencher.bench_local(|| backward(composed(&q, &k, &v, &mask)));
}
