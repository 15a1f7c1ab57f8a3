//! Gradients that are carried are those that candle would add up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, Var, bail};
use half::bf16;

use super::carrier::carried;
use super::{ApplyCarried, reshaped};
use crate::ops::elements::contiguous_slice;
use crate::ops::recompute::recomputed;
use crate::ops::testing::{assert_close, random_variable};

/// 3·x, with a backward pass that fails while it is told to.
#[derive(Default)]
struct Triple {
    fails: Arc<AtomicBool>,
}

fn triple(x: &Tensor) -> Tensor {
    x.carry_op1(Triple::default()).unwrap()
}

impl CustomOp1 for Triple {
    fn name(&self) -> &'static str {
        "triple"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = match x {
            CpuStorage::F32(x) => {
                CpuStorage::F32(contiguous_slice(x, layout)?.iter().map(|x| 3.0 * x).collect())
            }
            CpuStorage::BF16(x) => {
                let three = bf16::from_f32(3.0);
                CpuStorage::BF16(contiguous_slice(x, layout)?.iter().map(|x| three * *x).collect())
            }
            _ => bail!("no such test"),
        };
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        if self.fails.load(Ordering::Relaxed) {
            bail!("told to fail")
        }
        (grad * 3.0).map(Some)
    }
}

/// The gradient of the sum of `y` with respect to `x`, as f32.
fn slope(x: &Var, y: &Tensor) -> Tensor {
    let grads = y.to_dtype(DType::F32).unwrap().sum_all().unwrap().backward().unwrap();
    grads.get(x).unwrap().to_dtype(DType::F32).unwrap()
}

fn assert_slope(x: &Var, y: &Tensor, expected: f64) {
    let ones = Tensor::ones(x.dims(), DType::F32, x.device()).unwrap();
    assert_close(&slope(x, y), &(ones * expected).unwrap(), 0.0, "the slope");
}

#[test]
fn what_several_ops_and_candles_own_pass_back_is_added_up() {
    for dtype in [DType::F32, DType::BF16] {
        let x = random_variable(dtype, "x", &[4, 6]);
        let first = triple(&x);
        // Twice through ops that are carried, once through candle's, once in another shape.
        let of_candle = (&first * 2.0).unwrap();
        let flat = triple(&reshaped(&first, 24).unwrap());
        let sum = ((triple(&first) + triple(&first)).unwrap() + of_candle).unwrap();
        let y = (sum.reshape(24).unwrap() + flat).unwrap();
        assert_slope(&x, &y, 3.0 * (3.0 + 3.0 + 2.0 + 3.0));
    }
}

#[test]
fn a_graph_takes_several_backward_passes_one_after_the_other_and_at_once() {
    let x = random_variable(DType::BF16, "x", &[8]);
    let y = triple(&triple(&triple(&x)));
    assert_slope(&x, &y, 27.0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..20).for_each(|_| assert_slope(&x, &y, 27.0)));
        }
    });
}

#[test]
fn a_tensor_outside_of_the_graph_carries_nothing() {
    let x = random_variable(DType::BF16, "x", &[8]);
    let y = triple(&x);
    assert!(carried(&y).is_some());
    assert!(carried(&y.detach()).is_none());
    assert!(!triple(&y.detach()).track_op());
    assert!(carried(&triple(&y.detach())).is_none());
}

#[test]
fn nothing_is_kept_of_tensors_that_are_gone() {
    let x = random_variable(DType::F32, "x", &[2, 4]);
    let (first, view, last);
    {
        let y = triple(&x);
        let flat = reshaped(&y, 8).unwrap();
        let z = triple(&flat);
        (first, view, last) = (y.id(), flat.id(), z.id());
        assert_slope(&x, &z, 9.0);
    }
    let known = |id| super::carrier::is_known(id);
    assert!(![first, view, last].into_iter().any(known));
}

#[test]
fn a_backward_pass_after_one_that_failed_half_way_says_so() {
    let x = random_variable(DType::BF16, "x", &[8]);
    let fails = Arc::new(AtomicBool::new(true));
    let first = triple(&x);
    let failing = first.carry_op1(Triple { fails: Arc::clone(&fails) }).unwrap();
    // The first op has a part of its gradient when the other one fails.
    let y = (failing + triple(&first)).unwrap();
    let error = |y: &Tensor| y.sum_all().unwrap().backward().unwrap_err().to_string();
    assert!(error(&y).contains("told to fail"));
    fails.store(false, Ordering::Relaxed);
    assert!(error(&y).contains("run the forward pass again"), "{}", error(&y));
}

#[test]
fn a_block_that_is_computed_again_may_use_a_tensor_of_the_graph_around_it() {
    let x = random_variable(DType::F32, "x", &[8]);
    let outer = triple(&x);
    for first in [true, false] {
        let captured = outer.clone();
        let block = move |h: &Tensor| triple(h) + triple(&captured);
        let inner = recomputed(&triple(&outer), block.clone(), block).unwrap();
        let y = if first { triple(&outer) + inner } else { inner + triple(&outer) };
        assert_slope(&x, &y.unwrap(), 3.0 * (9.0 + 3.0 + 3.0));
    }
}

#[test]
fn a_long_chain_is_differentiated_and_dropped_on_a_small_stack() {
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    let run = || {
        let x = random_variable(DType::BF16, "x", &[1]);
        let mut y = x.as_tensor().clone();
        for _ in 0..1000 {
            y = reshaped(&triple(&y), 1).unwrap();
        }
        y.sum_all().unwrap().backward().unwrap();
    };
    thread.spawn(run).unwrap().join().unwrap();
}

#[test]
fn gradients_of_another_shape_are_refused() {
    struct Wrong;
    impl CustomOp1 for Wrong {
        fn name(&self) -> &'static str {
            "wrong"
        }

        fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
            Triple::default().cpu_fwd(x, layout)
        }

        fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
            grad.reshape((2, 4)).map(Some)
        }
    }
    let x = random_variable(DType::F32, "x", &[8]);
    let y = triple(&x).carry_op1(Wrong).unwrap();
    assert!(y.sum_all().unwrap().backward().is_err());
}
