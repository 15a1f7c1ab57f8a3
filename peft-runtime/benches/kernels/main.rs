//! Each kernel compared with candle's own op, where there is one. The benchmarks are in the folders of the operations.
//!
//! `forward` is the forward pass only, without a graph; `step` is forward and backward, with candle's differentiable
//! ops in place of its fast ones that have no gradient. Sizes are those of SmolLM2-135M at 256 tokens. A name on the
//! command line runs the benchmarks whose names contain it: `cargo bench -p peft-runtime --bench kernels -- attention`.

#[path = "../../src/ops/attention/bench.rs"]
mod attention;
#[path = "../../src/ops/cross_entropy/bench.rs"]
mod cross_entropy;
#[path = "../../src/ops/dropout/bench.rs"]
mod dropout;
#[path = "../../src/ops/gated/bench.rs"]
mod gated;
#[path = "../../src/ops/linear/bench.rs"]
mod linear;
#[path = "../../src/ops/norm/bench.rs"]
mod norm;
#[path = "../../src/ops/linear/quantized/bench.rs"]
mod quantized;
#[path = "../../src/ops/rotary/bench.rs"]
mod rotary;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};

fn main() {
    divan::main();
}

/// Tokens at a time.
const ROWS: usize = 256;
/// The sizes of a token's vector, of the feed-forward layer, and of a head.
const SIZE: usize = 576;
const WIDE: usize = 1536;
const HEAD: usize = 64;
/// Heads of queries, and heads of keys and values.
const HEADS: usize = 9;
const SHARED: usize = 3;

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
}

fn variable(shape: &[usize]) -> Var {
    Var::from_tensor(&random(shape)).unwrap()
}

/// The backward pass of the sum.
fn backward(y: Result<Tensor>) -> GradStore {
    y.and_then(|y| y.sum_all()).and_then(|sum| sum.backward()).unwrap()
}
