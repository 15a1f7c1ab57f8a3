use candle_core::{DType, Result, Tensor, Var};

use super::{Rotary, rotary};
use crate::ops::testing::{assert_agree, assert_differences, assert_precise, random};

/// Cosines and sines of angles without a pattern.
fn angles(length: usize, half: usize) -> (Tensor, Tensor) {
    let angles = random("angles", &[length, half]);
    (angles.cos().unwrap(), angles.sin().unwrap())
}

#[test]
fn value_and_gradient_are_those_of_the_composed_ops_and_of_difference_quotients() {
    let (cos, sin) = angles(7, 5);
    let ours = |t: &[Tensor]| rotary(&t[0], &cos, &sin);
    let op = Rotary { cos: cos.clone(), sin: sin.clone() };
    let x = [random("x", &[2, 7, 3, 10])];
    assert_agree(&ours, &|t| op.composed(&t[0]), &x, 1e-12, "rotary");
    assert_differences(&ours, &x, 1e-6, "rotary");
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        assert_precise(&ours, &x, dtype, tolerance, "rotary");
    }
}

#[test]
fn strided_inputs_give_the_same() {
    let (cos, sin) = angles(4, 3);
    let heads_first = [random("x", &[2, 5, 4, 6])];
    let strided = |t: &[Tensor]| rotary(&t[0].transpose(1, 2)?, &cos, &sin);
    let copied = |t: &[Tensor]| rotary(&t[0].transpose(1, 2)?.force_contiguous()?, &cos, &sin);
    assert_agree(&strided, &copied, &heads_first, 1e-12, "strided");
}

#[test]
fn the_angles_get_no_gradient_and_wrong_shapes_are_refused() -> Result<()> {
    let (cos, sin) = angles(2, 2);
    let (x, cos) = (Var::from_tensor(&random("x", &[1, 2, 1, 4]))?, Var::from_tensor(&cos)?);
    let grads = rotary(&x, &cos, &sin)?.sum_all()?.backward()?;
    assert!(grads.get(&x).is_some() && grads.get(&cos).is_none());
    assert!(rotary(&random("x", &[1, 3, 1, 4]), &cos, &sin).is_err());
    assert!(rotary(&random("x", &[1, 2, 1, 6]), &cos, &sin).is_err());
    Ok(())
}
