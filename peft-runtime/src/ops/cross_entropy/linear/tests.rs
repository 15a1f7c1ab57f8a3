use candle_core::{DType, Device, Result, Tensor, Var};

use super::{Targets, composed, linear_cross_entropy, rows_at_a_time};
use crate::ops::cross_entropy::cross_entropy;
use crate::ops::testing::{assert_agree, assert_close, assert_differences, assert_precise, random};

const ROWS: usize = 700;
const VOCABULARY: usize = 37;

/// Targets of which every fifth is ignored; the rest make more than two groups of rows.
fn targets() -> Tensor {
    let target = |row: usize| if row.is_multiple_of(5) { -100 } else { (row * 7 % VOCABULARY) as i64 };
    Tensor::from_vec((0..ROWS).map(target).collect(), (2, ROWS / 2), &Device::Cpu).unwrap()
}

fn weight() -> Tensor {
    random("weight", &[VOCABULARY, 6])
}

fn hidden() -> [Tensor; 1] {
    [random("hidden", &[2, ROWS / 2, 6])]
}

fn ours(t: &[Tensor]) -> Result<Tensor> {
    linear_cross_entropy(&t[0], &weight().to_dtype(t[0].dtype())?, &targets(), Some(-100))
}

#[test]
fn value_and_gradient_are_those_of_whole_logits_and_of_difference_quotients() {
    let whole = |t: &[Tensor]| {
        let logits = t[0].reshape((ROWS, 6))?.matmul(&weight().t()?)?;
        cross_entropy(&logits, &targets().flatten_all()?, Some(-100))
    };
    assert_agree(&ours, &whole, &hidden(), 1e-12, "whole logits");
    let targets = || Targets::read(&targets(), &[2, ROWS / 2], VOCABULARY, Some(-100)).unwrap();
    assert_agree(&ours, &|t| composed(&t[0], &weight(), &targets()), &hidden(), 1e-12, "composed");
    assert_differences(&ours, &hidden(), 1e-6, "linear cross-entropy");
}

#[test]
fn low_precision_is_near_f64() {
    let weight = weight().to_dtype(DType::BF16).unwrap();
    let op =
        |t: &[Tensor]| linear_cross_entropy(&t[0], &weight.to_dtype(t[0].dtype())?, &targets(), Some(-100));
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F16, 1e-3), (DType::BF16, 5e-3)] {
        assert_precise(&op, &hidden(), dtype, tolerance, "linear cross-entropy");
    }
}

#[test]
fn strided_operands_give_the_same_and_the_gradient_of_the_loss_scales() {
    let across = [random("hidden", &[6, ROWS / 2, 2])];
    let strided = |t: &[Tensor]| {
        let weight = random("weight", &[6, VOCABULARY]).t()?;
        linear_cross_entropy(&t[0].transpose(0, 2)?, &weight, &targets(), Some(-100))? * 3.0
    };
    let copied = |t: &[Tensor]| {
        let weight = random("weight", &[6, VOCABULARY]).t()?.contiguous()?;
        let hidden = t[0].transpose(0, 2)?.contiguous()?;
        linear_cross_entropy(&hidden, &weight, &targets(), Some(-100))? * 3.0
    };
    assert_agree(&strided, &copied, &across, 1e-12, "strided");
    assert_differences(&strided, &across, 1e-6, "scaled");
}

#[test]
fn a_loss_of_nothing_is_refused() {
    let targets = Tensor::new(&[5u32, 5], &Device::Cpu).unwrap();
    let loss = linear_cross_entropy(&random("hidden", &[2, 6]), &weight(), &targets, Some(5));
    assert!(loss.unwrap_err().to_string().contains("no target counts: all 2 are 5"));
}

#[test]
fn a_frozen_weight_gets_no_gradient_and_a_variable_does() {
    let hidden = Var::from_tensor(&random("hidden", &[2, 6])).unwrap();
    let targets = Tensor::new(&[1u32, 36], &Device::Cpu).unwrap();
    let frozen = weight();
    let loss = linear_cross_entropy(&hidden, &frozen, &targets, None).unwrap();
    let grads = loss.backward().unwrap();
    assert!(grads.get(&hidden).is_some() && grads.get(&frozen).is_none());

    let trained = Var::from_tensor(&frozen).unwrap();
    let same = linear_cross_entropy(&hidden, &trained, &targets, None).unwrap();
    assert_close(&same, &loss, 1e-12, "loss");
    assert!(same.backward().unwrap().get(&trained).is_some());

    let far = linear_cross_entropy(&hidden, &frozen, &Tensor::new(&[1u32, 37], &Device::Cpu).unwrap(), None);
    assert!(far.unwrap_err().to_string().contains("target 37 is outside of the vocabulary of 37"));
}

#[test]
fn the_logits_at_a_time_are_bounded() {
    assert_eq!(rows_at_a_time(100, 4), 256);
    assert_eq!(rows_at_a_time(16_384, 4), 128);
    assert_eq!(rows_at_a_time(49_152, 4), 128);
    assert_eq!(rows_at_a_time(262_144, 4), 64);
    assert_eq!(rows_at_a_time(1 << 20, 8), 16);
}
