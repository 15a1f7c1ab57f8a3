use candle_core::{DType, Device, Result, Tensor, Var};

use super::rotary_attention;
use crate::ops::attention::{AttentionOptions, attention};
use crate::ops::dropout::DropoutMask;
use crate::ops::rotary::rotary;
use crate::ops::testing::{assert_agree, assert_differences, assert_precise, random};

const LENGTH: usize = 70;

/// Queries of four heads, and keys and values of two.
fn inputs() -> Vec<Tensor> {
    let tokens = |label, heads| random(label, &[2, LENGTH, heads, 6]);
    vec![tokens("q", 4), tokens("k", 2), tokens("v", 2)]
}

/// Cosines and sines of angles without a pattern.
fn angles(dtype: DType) -> (Tensor, Tensor) {
    let angles = random("angles", &[LENGTH, 3]);
    (angles.cos().unwrap().to_dtype(dtype).unwrap(), angles.sin().unwrap().to_dtype(dtype).unwrap())
}

fn padding() -> Tensor {
    let flags: Vec<u32> =
        (0..2 * LENGTH).map(|index| u32::from(!(LENGTH..LENGTH + 2).contains(&index))).collect();
    Tensor::from_vec(flags, (2, LENGTH), &Device::Cpu).unwrap()
}

/// With a third of the probabilities dropped.
fn options(causal: bool, mask: Option<&Tensor>) -> AttentionOptions<'_> {
    AttentionOptions { scale: 0.6, causal, mask, dropout: Some(DropoutMask::new(11, 1.0 / 3.0)) }
}

fn fused(t: &[Tensor], options: &AttentionOptions<'_>) -> Result<Tensor> {
    let (cos, sin) = angles(t[0].dtype());
    rotary_attention(&t[0], &t[1], &t[2], &cos, &sin, options)
}

fn one_after_the_other(t: &[Tensor], options: &AttentionOptions<'_>) -> Result<Tensor> {
    let (cos, sin) = angles(t[0].dtype());
    attention(&rotary(&t[0], &cos, &sin)?, &rotary(&t[1], &cos, &sin)?, &t[2], options)
}

#[test]
fn value_and_gradients_are_those_of_the_ops_one_after_the_other_and_of_difference_quotients() {
    let mask = padding();
    for (causal, mask) in [(true, None), (false, Some(&mask)), (true, Some(&mask))] {
        let options = options(causal, mask);
        let ours = |t: &[Tensor]| fused(t, &options);
        assert_agree(&ours, &|t| one_after_the_other(t, &options), &inputs(), 1e-12, "fused");
        assert_differences(&ours, &inputs(), 1e-6, "fused");
    }
}

#[test]
fn low_precision_is_near_f64() {
    // Angles that every float type holds exactly: their rounding is not an error of the op.
    let (cos, sin) = angles(DType::BF16);
    let ours = |t: &[Tensor]| {
        let in_dtype = |tensor: &Tensor| tensor.to_dtype(t[0].dtype());
        rotary_attention(&t[0], &t[1], &t[2], &in_dtype(&cos)?, &in_dtype(&sin)?, &options(true, None))
    };
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 2e-2), (DType::BF16, 1e-1)] {
        assert_precise(&ours, &inputs(), dtype, tolerance, "rotary attention");
    }
}

#[test]
fn strided_inputs_give_the_same() {
    let heads_first: Vec<Tensor> =
        inputs().iter().map(|tensor| tensor.transpose(1, 2).unwrap().contiguous().unwrap()).collect();
    let options = options(true, None);
    let turned = |t: &[Tensor]| t.iter().map(|tensor| tensor.transpose(1, 2)).collect::<Result<Vec<_>>>();
    let strided = |t: &[Tensor]| fused(&turned(t)?, &options);
    let copied = |t: &[Tensor]| {
        let copies = turned(t)?.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
        fused(&copies, &options)
    };
    assert_agree(&strided, &copied, &heads_first, 1e-12, "strided");
}

#[test]
fn constants_get_no_gradient() {
    for tracked in 0..3 {
        let mut operands = inputs();
        let variable = Var::from_tensor(&operands[tracked]).unwrap();
        operands[tracked] = variable.as_tensor().clone();
        let y = fused(&operands, &options(true, None)).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        for (index, operand) in operands.iter().enumerate() {
            assert_eq!(grads.get(operand).is_some(), index == tracked, "input {index} of {tracked}");
        }
    }
}

#[test]
fn angles_that_do_not_fit_queries_and_keys_are_refused() {
    let t = inputs();
    let (cos, sin) = angles(DType::F64);
    let refused = |q: &Tensor, k: &Tensor, v: &Tensor, cos: &Tensor| {
        rotary_attention(q, k, v, cos, &sin, &options(false, None)).is_err()
    };
    assert!(!refused(&t[0], &t[1], &t[2], &cos));
    assert!(refused(&t[0], &t[1], &t[2], &cos.narrow(0, 0, 5).unwrap()));
    let first = |tensor: &Tensor| tensor.narrow(1, 0, 5).unwrap();
    // Keys of other tokens than the queries.
    assert!(refused(&t[0], &first(&t[1]), &first(&t[2]), &cos));
}
