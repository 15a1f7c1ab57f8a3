use candle_core::{DType, Device, Result, Tensor};

use super::{Targets, composed, cross_entropy};
use crate::ops::testing::{assert_agree, assert_close, assert_differences, assert_precise, random};

fn targets() -> Tensor {
    Tensor::new(&[[1i64, -100, 0], [36, 7, -100]], &Device::Cpu).unwrap()
}

fn ours(t: &[Tensor]) -> Result<Tensor> {
    cross_entropy(&t[0], &targets(), Some(-100))
}

#[test]
fn value_and_gradient_are_those_of_the_composed_ops_and_of_difference_quotients() {
    let logits = [(random("logits", &[2, 3, 37]) * 4.0).unwrap()];
    let theirs = |t: &[Tensor]| composed(&t[0], &Targets::read(&targets(), &[2, 3], 37, Some(-100)).unwrap());
    assert_agree(&ours, &theirs, &logits, 1e-12, "cross-entropy");
    assert_differences(&ours, &logits, 1e-6, "cross-entropy");
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F16, 1e-3), (DType::BF16, 5e-3)] {
        assert_precise(&ours, &logits, dtype, tolerance, "cross-entropy");
    }
}

#[test]
fn without_an_index_to_ignore_it_is_candles_loss() {
    let logits = random("logits", &[5, 11]);
    let targets = Tensor::new(&[0u32, 3, 10, 3, 1], &Device::Cpu).unwrap();
    let ours = cross_entropy(&logits, &targets, None).unwrap();
    assert_close(&ours, &candle_nn::loss::cross_entropy(&logits, &targets).unwrap(), 1e-12, "loss");
}

#[test]
fn strided_logits_give_the_same() {
    let logits = [random("logits", &[37, 3, 2])];
    let strided = |t: &[Tensor]| cross_entropy(&t[0].t()?.transpose(0, 2)?, &targets().t()?, Some(-100));
    let copied = |t: &[Tensor]| {
        let logits = t[0].t()?.transpose(0, 2)?.force_contiguous()?;
        cross_entropy(&logits, &targets().t()?, Some(-100))
    };
    assert_agree(&strided, &copied, &logits, 1e-12, "strided");
}

#[test]
fn a_loss_of_nothing_is_refused() {
    let targets = Tensor::new(&[5u32, 5], &Device::Cpu).unwrap();
    let loss = cross_entropy(&random("logits", &[2, 6]), &targets, Some(5));
    assert!(loss.unwrap_err().to_string().contains("no target counts: all 2 are 5"));
}
