//! Laws over random shapes, ranks, dtypes and sets of adapters; what is expected is worked out by candle's plain ops.
//!
//! The random numbers are the same in every run.

mod layers;
mod sequences;

use candle_core::{DType, Device, Tensor};
use peft_runtime::prelude::*;
use peft_tests::specimen::distance;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Runs `test` on a fixed sequence of values.
fn check<S: Strategy>(strategy: S, test: impl Fn(S::Value)) {
    let config = Config { cases: 32, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let run = |value: S::Value| {
        test(value);
        Ok(())
    };
    TestRunner::new_with_rng(config, rng).run(&strategy, run).unwrap();
}

/// Numbers in ±1 from a seed: <https://prng.di.unimi.it/splitmix64.c>.
struct Numbers(u64);

impl Numbers {
    fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn tensor(&mut self, shape: &[usize], dtype: DType) -> Tensor {
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| self.draw()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    }

    /// Moves every tensor of an adapter somewhere else.
    fn stir<M: Injectable>(&mut self, model: &mut M, name: &str) {
        let mut state = model.adapter_state_dict(name).unwrap();
        for tensor in state.values_mut() {
            *tensor = (wide(tensor) + self.tensor(tensor.dims(), DType::F64)).unwrap();
        }
        model.load_adapter_state_dict(&state, name).unwrap();
    }
}

fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::F64).unwrap()
}

fn largest(tensor: &Tensor) -> f64 {
    distance(tensor, &tensor.zeros_like().unwrap()).unwrap()
}

/// Whether two results are the same but for roundings of the dtype, seen from their largest value.
fn near(found: &Tensor, expected: &Tensor, dtype: DType) -> bool {
    let relative = match dtype {
        DType::F64 => 1e-10,
        DType::F32 => 2e-5,
        // Weights, the layer's output and the sum are rounded to 8 bits each.
        _ => 0.05,
    };
    distance(found, expected).unwrap() <= relative * largest(expected).max(1.0)
}
