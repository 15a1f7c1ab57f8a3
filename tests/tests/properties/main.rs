//! Laws over random shapes, ranks, dtypes and sets of adapters; expected values are computed with candle's plain ops.
//!
//! The random numbers are the same in every run.

mod layer_cases;
mod layers;
mod methods;
mod sequences;

use candle_core::{DType, Tensor};
use peft_runtime::prelude::*;
use peft_tests::close::assert_close;
use peft_tests::float_types::FloatType;
use peft_tests::tensors::Generator;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Runs `test` on a fixed sequence of values.
fn check<S: Strategy>(strategy: S, test: impl Fn(S::Value)) {
    run(strategy, 32, test);
}

/// The same on more values, for strategies that choose among all methods.
fn check_many<S: Strategy>(strategy: S, test: impl Fn(S::Value)) {
    run(strategy, 256, test);
}

fn run<S: Strategy>(strategy: S, cases: u32, test: impl Fn(S::Value)) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let attempt = |value: S::Value| {
        test(value);
        Ok(())
    };
    TestRunner::new_with_rng(config, rng).run(&strategy, attempt).unwrap();
}

/// Changes every tensor of an adapter.
fn perturb<M: Injectable>(generator: &mut Generator, model: &mut M, name: &str) {
    let mut state = model.adapter_state_dict(name).unwrap();
    for tensor in state.values_mut() {
        *tensor = (wide(tensor) + generator.uniform(tensor.dims(), 1.0, DType::F64).unwrap()).unwrap();
    }
    model.load_adapter_state_dict(&state, name).unwrap();
}

fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::F64).unwrap()
}

/// Asserts that two results are the same up to rounding in the type, relative to their largest value.
#[track_caller]
fn assert_near(found: &Tensor, expected: &Tensor, dtype: DType, what: &str) {
    assert_close(found, expected, FloatType::of(dtype).rounding_of(expected), what);
}
