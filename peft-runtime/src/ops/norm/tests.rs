use candle_core::{DType, Result, Tensor, Var};

use super::{Norm, layer_norm, rms_norm};
use crate::ops::testing::{assert_agree, assert_differences, assert_precise, random};

const EPS: f64 = 1e-5;

fn inputs() -> Vec<Tensor> {
    // More rows than one task adds up, and a width with a tail after the lanes.
    vec![random("x", &[5, 9, 19]), random("weight", &[19]), random("bias", &[19])]
}

fn layer(t: &[Tensor]) -> Result<Tensor> {
    layer_norm(&t[0], &t[1], Some(&t[2]), EPS)
}

fn layer_without_bias(t: &[Tensor]) -> Result<Tensor> {
    layer_norm(&t[0], &t[1], None, EPS)
}

fn rms(t: &[Tensor]) -> Result<Tensor> {
    rms_norm(&t[0], &t[1], EPS)
}

#[test]
fn value_and_gradients_are_those_of_the_composed_ops_and_of_difference_quotients() {
    let composed = |centred, t: &[Tensor]| Norm { eps: EPS, centred }.composed(&t[0], &t[1], t.get(2));
    let all = inputs();
    assert_agree(&layer, &|t| composed(true, t), &all, 1e-10, "layer norm");
    assert_agree(&layer_without_bias, &|t| composed(true, t), &all[..2], 1e-10, "layer norm, no bias");
    assert_agree(&rms, &|t| composed(false, t), &all[..2], 1e-10, "rms norm");
    assert_differences(&layer, &all, 1e-6, "layer norm");
    assert_differences(&rms, &all[..2], 1e-6, "rms norm");
}

#[test]
fn strided_inputs_give_the_same() {
    let x = random("x", &[19, 6, 4]);
    let strided = |t: &[Tensor]| layer_norm(&t[0].transpose(0, 2)?, &t[1], Some(&t[2]), EPS);
    let copied =
        |t: &[Tensor]| layer_norm(&t[0].transpose(0, 2)?.force_contiguous()?, &t[1], Some(&t[2]), EPS);
    let all = [vec![x], inputs().split_off(1)].concat();
    assert_agree(&strided, &copied, &all, 1e-12, "strided");
    assert_differences(&strided, &all, 1e-6, "strided");
}

#[test]
fn low_precision_is_near_f64() {
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::F16, 1e-2), (DType::BF16, 5e-2)] {
        assert_precise(&layer, &inputs(), dtype, tolerance, "layer norm");
        assert_precise(&rms, &inputs()[..2], dtype, tolerance, "rms norm");
    }
}

#[test]
fn frozen_parameters_get_no_gradient_and_a_wrong_size_is_refused() {
    let [x, weight, bias] = [0, 1, 2].map(|index| inputs().swap_remove(index));
    let variable = Var::from_tensor(&x).unwrap();
    let y = layer_norm(&variable, &weight, Some(&bias), EPS).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&variable).is_some());
    assert!(grads.get(&weight).is_none() && grads.get(&bias).is_none());
    assert!(rms_norm(&x, &random("short", &[18]), EPS).is_err());
}
