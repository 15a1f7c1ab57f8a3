use candle_core::{DType, Result, Tensor, Var};

use super::{geglu, gelu, swiglu};
use crate::ops::testing::{Op, assert_agree, assert_differences, assert_precise, random};

fn inputs() -> Vec<Tensor> {
    // More than one task computes, and a tail.
    vec![(random("gate", &[3, 1500]) * 3.0).unwrap(), random("up", &[3, 1500])]
}

fn silu_gate(t: &[Tensor]) -> Result<Tensor> {
    swiglu(&t[0], &t[1])
}

fn tanh_gate(t: &[Tensor]) -> Result<Tensor> {
    geglu(&t[0], &t[1], true)
}

fn erf_gate(t: &[Tensor]) -> Result<Tensor> {
    geglu(&t[0], &t[1], false)
}

fn plain_gelu(t: &[Tensor]) -> Result<Tensor> {
    gelu(&t[0])
}

#[test]
fn value_and_gradients_are_those_of_the_composed_ops_and_of_difference_quotients() {
    let all = inputs();
    assert_agree(&silu_gate, &|t| t[0].silu()? * &t[1], &all, 1e-10, "swiglu");
    // candle's own gradients of GELU have constants of six digits.
    assert_agree(&tanh_gate, &|t| t[0].gelu()? * &t[1], &all, 1e-4, "tanh geglu");
    assert_agree(&erf_gate, &|t| t[0].gelu_erf()? * &t[1], &all, 1e-4, "geglu");
    assert_agree(&plain_gelu, &|t| t[0].gelu(), &all[..1], 1e-4, "gelu");
    let cases: [(Op<'_>, &[Tensor]); 4] =
        [(&silu_gate, &all[..]), (&tanh_gate, &all[..]), (&erf_gate, &all[..]), (&plain_gelu, &all[..1])];
    for (op, inputs) in cases {
        assert_differences(op, inputs, 1e-6, "gate");
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 2e-3), (DType::BF16, 2e-2)] {
            assert_precise(op, inputs, dtype, tolerance, "gate");
        }
    }
}

#[test]
fn far_ends_are_finite() {
    let x = Tensor::new(&[-1e4f32, -100.0, 0.0, 100.0, 1e4], &candle_core::Device::Cpu).unwrap();
    let x = Var::from_tensor(&x).unwrap();
    let ones = x.ones_like().unwrap();
    for y in [swiglu(&x, &ones), geglu(&x, &ones, true), geglu(&x, &ones, false), gelu(&x)] {
        let y = y.unwrap();
        assert_eq!(y.to_vec1::<f32>().unwrap(), [0.0, 0.0, 0.0, 100.0, 1e4]);
        let grads = y.sum_all().unwrap().backward().unwrap();
        let slopes = grads.get(&x).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(slopes, [0.0, 0.0, 0.5, 1.0, 1.0]);
    }
}

#[test]
fn strided_inputs_give_the_same_and_a_constant_gets_no_gradient() {
    let (gate, up) = (random("gate", &[4, 6]), random("up", &[6, 4]));
    let strided = |t: &[Tensor]| swiglu(&t[0].t()?, &t[1]);
    let copied = |t: &[Tensor]| swiglu(&t[0].t()?.force_contiguous()?, &t[1]);
    assert_agree(&strided, &copied, &[gate.clone(), up.clone()], 1e-12, "strided");
    assert!(swiglu(&gate, &up).is_err());

    let variable = Var::from_tensor(&gate.t().unwrap()).unwrap();
    let grads = swiglu(&variable, &up).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&variable).is_some() && grads.get(&up).is_none());
}
