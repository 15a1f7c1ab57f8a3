use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var};

use super::recomputed;
use crate::ops::random::DropoutStream;
use crate::ops::testing::{assert_close, random_variable};

fn input() -> Var {
    random_variable(DType::F32, "x", &[3, 4])
}

/// y = x + tanh(x·W + b), with variables of two dtypes.
#[derive(Clone)]
struct Block {
    w: Var,
    b: Var,
}

impl Block {
    fn new(label: &str) -> Self {
        Self {
            w: random_variable(DType::F32, &format!("w {label}"), &[4, 4]),
            b: random_variable(DType::F64, &format!("b {label}"), &[4]),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x + x.matmul(&self.w)?.broadcast_add(&self.b.to_dtype(DType::F32)?)?.tanh()?
    }

    fn recomputed(&self, x: &Tensor) -> Result<Tensor> {
        let again = self.clone();
        recomputed(x, |x| self.forward(x), move |x| again.forward(x))
    }
}

fn bits(grads: &GradStore, var: &Var) -> Vec<u64> {
    let grad = grads.get(var).unwrap().to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    grad.to_vec1::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
}

#[test]
fn gradients_of_a_chain_are_those_of_the_whole_graph_to_the_bit() {
    let (x, blocks) = (input(), ["first", "second", "third"].map(Block::new));
    let run = |step: fn(&Block, &Tensor) -> Result<Tensor>| {
        let y = blocks.iter().try_fold(x.as_tensor().clone(), |x, block| step(block, &x)).unwrap();
        let loss = y.sqr().unwrap().mean_all().unwrap();
        (loss.to_scalar::<f32>().unwrap(), loss.backward().unwrap())
    };
    let (plain, ours) = (run(Block::forward), run(Block::recomputed));
    assert_eq!(plain.0, ours.0);
    let variables = blocks.iter().flat_map(|block| [&block.w, &block.b]).chain([&x]);
    for var in variables {
        assert_eq!(bits(&plain.1, var), bits(&ours.1, var));
    }
}

#[test]
fn a_variable_of_several_blocks_gets_the_sum() {
    let (x, block) = (input(), Block::new("only"));
    let twice = |step: fn(&Block, &Tensor) -> Result<Tensor>| {
        let y = step(&block, &step(&block, &x).unwrap()).unwrap();
        y.sum_all().unwrap().backward().unwrap()
    };
    let (plain, ours) = (twice(Block::forward), twice(Block::recomputed));
    for var in [&block.w, &block.b, &x] {
        assert_close(ours.get(var).unwrap(), plain.get(var).unwrap(), 1e-6, "the sum");
    }
}

#[test]
fn an_input_outside_of_the_graph_needs_no_gradient() {
    let (x, block) = (input(), Block::new("only"));
    let constant = x.as_detached_tensor();
    let grads = block.recomputed(&constant).unwrap().sum_all().unwrap().backward().unwrap();
    let plain = block.forward(&constant).unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(bits(&grads, &block.w), bits(&plain, &block.w));
    assert!(grads.get(&constant).is_none());
    // Nothing trains: there is no graph at all.
    let frozen = recomputed(&constant, Tensor::sqr, Tensor::sqr).unwrap();
    assert!(!frozen.track_op());
}

#[test]
fn gradients_reach_what_a_block_captures() {
    let (x, w) = (input(), random_variable(DType::F32, "w", &[3, 4]));
    let memory = w.sqr().unwrap();
    let captured = memory.clone();
    let y = recomputed(&x, |x| x * &memory, move |x| x * &captured).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    let plain = (x.as_tensor() * w.sqr().unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(bits(&grads, &w), bits(&plain, &w));
    assert_eq!(bits(&grads, &x), bits(&plain, &x));
}

#[test]
fn dropout_drops_the_same_again_and_the_stream_goes_on() {
    let x = random_variable(DType::F32, "x", &[50, 4]);
    let stream = DropoutStream::new(3, "layer".to_owned());
    let again = stream.clone();
    let y = recomputed(&x, |x| stream.apply(x, 0.5), move |x| again.apply(x, 0.5)).unwrap();
    let next = stream.apply(&x, 0.5).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    // The gradient of x∘mask is the mask.
    let mask = (grads.get(&x).unwrap() * x.as_tensor()).unwrap();
    assert_eq!(mask.to_vec2::<f32>().unwrap(), y.to_vec2::<f32>().unwrap());
    assert_ne!(next.to_vec2::<f32>().unwrap(), y.to_vec2::<f32>().unwrap());
    assert_eq!(stream.position(), 2);
}

#[test]
fn a_block_inside_a_block_has_the_same_gradients() {
    let (x, block) = (input(), Block::new("only"));
    let again = block.clone();
    let nested = recomputed(&x, |x| block.recomputed(x), move |x| again.recomputed(x)).unwrap();
    let grads = nested.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let plain = block.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
    for var in [&block.w, &block.b, &x] {
        assert_eq!(bits(&grads, var), bits(&plain, var));
    }
}

#[test]
fn a_block_that_computes_something_else_the_second_time_is_an_error() {
    let x = input();
    let y = recomputed(&x, Tensor::sqr, |x| x.sqr()? * 1.1).unwrap();
    let error = y.sum_all().unwrap().backward().unwrap_err().to_string();
    assert!(error.contains("computes something else"), "{error}");
}
