use candle_core::{DType, Device, Result, Tensor, Var};

use super::{AttentionOptions, attended, attention, composed, sizes};
use crate::ops::gradcheck::{assert_agree, assert_close, assert_differences, assert_precise, values};

/// Queries `[batch, length, heads, size]`, keys and values `[batch, keys, kv_heads, size]`.
fn inputs(q: [usize; 4], keys: usize, kv_heads: usize) -> Vec<Tensor> {
    let [batch, _, _, size] = q;
    let kv = [batch, keys, kv_heads, size];
    vec![values("q", &q), values("k", &kv), values("v", &kv)]
}

/// The mask with zeros in front of the second sequence, as left padding makes it.
fn padding(keys: usize) -> Tensor {
    let rows: Vec<u32> = (0..2 * keys).map(|index| u32::from(index < keys || index >= keys + 2)).collect();
    Tensor::from_vec(rows, (2, keys), &Device::Cpu).unwrap()
}

fn options(causal: bool, mask: Option<&Tensor>) -> AttentionOptions<'_> {
    AttentionOptions { scale: 0.6, causal, mask }
}

fn by_candle(t: &[Tensor], options: &AttentionOptions<'_>) -> Result<Tensor> {
    let sizes = sizes(&t[0], &t[1], &t[2], options)?;
    let mask = options.mask.map(|mask| attended(mask, &sizes)).transpose()?;
    composed(&t[0], &t[1], &t[2], &sizes, mask.as_deref())
}

/// Shapes × options. Several blocks of queries; grouped heads, one task for a group and one for a head; a cache; one
/// query; more queries than keys.
fn cases() -> Vec<(Vec<Tensor>, bool, Option<Tensor>)> {
    vec![
        (inputs([2, 5, 4, 3], 5, 2), false, None),
        (inputs([2, 5, 4, 3], 5, 4), true, None),
        (inputs([2, 5, 6, 3], 9, 2), true, Some(padding(9))),
        (inputs([2, 5, 6, 3], 9, 1), false, Some(padding(9))),
        (inputs([1, 150, 2, 4], 150, 1), true, None),
        (inputs([2, 70, 32, 2], 70, 16), true, Some(padding(70))),
        (inputs([2, 1, 4, 3], 9, 2), true, Some(padding(9))),
        (inputs([2, 7, 2, 3], 4, 2), true, None),
    ]
}

#[test]
fn value_and_gradients_are_those_of_the_composed_ops() {
    for (index, (inputs, causal, mask)) in cases().into_iter().enumerate() {
        let options = options(causal, mask.as_ref());
        let ours = |t: &[Tensor]| attention(&t[0], &t[1], &t[2], &options);
        assert_agree(&ours, &|t| by_candle(t, &options), &inputs, 1e-9, &format!("case {index}"));
    }
}

#[test]
fn gradients_are_difference_quotients() {
    for (index, (inputs, causal, mask)) in cases().into_iter().enumerate() {
        let options = options(causal, mask.as_ref());
        let ours = |t: &[Tensor]| attention(&t[0], &t[1], &t[2], &options);
        assert_differences(&ours, &inputs, 1e-6, &format!("case {index}"));
    }
}

#[test]
fn strided_inputs_give_the_same() {
    let heads_first = [values("q", &[2, 4, 5, 3]), values("k", &[2, 2, 5, 3]), values("v", &[2, 2, 3, 5])];
    let options = options(true, None);
    let strided = |t: &[Tensor]| {
        let (q, k, v) = (t[0].transpose(1, 2)?, t[1].transpose(1, 2)?, t[2].permute((0, 3, 1, 2))?);
        attention(&q, &k, &v, &options)
    };
    let copied = |t: &[Tensor]| {
        let (q, k) = (t[0].transpose(1, 2)?.contiguous()?, t[1].transpose(1, 2)?.contiguous()?);
        attention(&q, &k, &t[2].permute((0, 3, 1, 2))?.contiguous()?, &options)
    };
    assert_agree(&strided, &copied, &heads_first, 1e-12, "strided");
}

#[test]
fn low_precision_is_near_f64() {
    let all = inputs([2, 40, 4, 8], 40, 2);
    let mask = padding(40);
    let options = AttentionOptions { scale: 8f64.sqrt().recip(), causal: true, mask: Some(&mask) };
    let ours = |t: &[Tensor]| attention(&t[0], &t[1], &t[2], &options);
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 5e-3), (DType::BF16, 3e-2)] {
        assert_precise(&ours, &all, dtype, tolerance, "attention");
    }
}

#[test]
fn rows_with_nothing_to_attend_to_are_zero_and_the_mask_may_have_any_dtype() {
    let all = inputs([2, 3, 2, 4], 3, 1);
    let flags = Tensor::new(&[[1u32, 1, 1], [0, 0, 0]], &Device::Cpu).unwrap();
    let mut outputs = Vec::new();
    for dtype in [DType::U8, DType::U32, DType::I64, DType::F32] {
        let mask = flags.to_dtype(dtype).unwrap();
        outputs.push(attention(&all[0], &all[1], &all[2], &options(false, Some(&mask))).unwrap());
    }
    let second = outputs[0].get(1).unwrap();
    assert_close(&second, &second.zeros_like().unwrap(), 0.0, "nothing to attend to");
    for output in &outputs[1..] {
        assert_close(output, &outputs[0], 0.0, "the mask's dtype");
    }
}

#[test]
fn constants_get_no_gradient() {
    let all = inputs([1, 4, 2, 3], 4, 2);
    for tracked in 0..3 {
        let variable = Var::from_tensor(&all[tracked]).unwrap();
        let mut operands = all.clone();
        operands[tracked] = variable.as_tensor().clone();
        let y = attention(&operands[0], &operands[1], &operands[2], &options(true, None)).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        for (index, operand) in operands.iter().enumerate() {
            assert_eq!(grads.get(operand).is_some(), index == tracked, "input {index} of {tracked}");
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let refused = |q: [usize; 4], keys, kv_heads| {
        let all = inputs(q, keys, kv_heads);
        attention(&all[0], &all[1], &all[2], &options(false, None)).is_err()
    };
    assert!(refused([1, 2, 3, 4], 2, 2));
    let all = inputs([1, 2, 2, 4], 3, 2);
    assert!(attention(&all[0], &all[1], &values("v", &[1, 2, 2, 4]), &options(false, None)).is_err());
    let short = Tensor::ones((1, 2), DType::U8, &Device::Cpu).unwrap();
    assert!(attention(&all[0], &all[1], &all[2], &options(false, Some(&short))).is_err());
}
