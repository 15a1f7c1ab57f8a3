use candle_core::{DType, Device, Result, Tensor, Var};

use super::options::{attended, sizes};
use super::{AttentionOptions, attention, composed};
use crate::ops::dropout::DropoutMask;
use crate::ops::testing::{
    assert_agree, assert_close, assert_differences, assert_precise, gradients, random,
};

/// Queries `[batch, length, heads, size]`, keys and values `[batch, keys, kv_heads, size]`.
fn inputs(q: [usize; 4], keys: usize, kv_heads: usize) -> Vec<Tensor> {
    let [batch, _, _, size] = q;
    let kv = [batch, keys, kv_heads, size];
    vec![random("q", &q), random("k", &kv), random("v", &kv)]
}

/// The mask with zeros in front of the second sequence, as left padding gives it.
fn padding(keys: usize) -> Tensor {
    let rows: Vec<u32> = (0..2 * keys).map(|index| u32::from(index < keys || index >= keys + 2)).collect();
    Tensor::from_vec(rows, (2, keys), &Device::Cpu).unwrap()
}

fn options(causal: bool, mask: Option<&Tensor>) -> AttentionOptions<'_> {
    AttentionOptions { scale: 0.6, causal, mask, dropout: None }
}

/// The same with a third of the probabilities dropped.
fn dropping(causal: bool, mask: Option<&Tensor>) -> AttentionOptions<'_> {
    AttentionOptions { dropout: Some(DropoutMask::new(11, 1.0 / 3.0)), ..options(causal, mask) }
}

fn by_candle(t: &[Tensor], options: &AttentionOptions<'_>) -> Result<Tensor> {
    let sizes = sizes(&t[0], &t[1], &t[2], options)?;
    let mask = options.mask.map(|mask| attended(mask, &sizes)).transpose()?;
    composed(&t[0], &t[1], &t[2], &sizes, mask.as_deref(), options.dropout)
}

/// Shapes × options: several blocks of queries; grouped heads, with one task for a group and with one for a head; a
/// cache; one query; more queries than keys.
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
        for options in [options(causal, mask.as_ref()), dropping(causal, mask.as_ref())] {
            let ours = |t: &[Tensor]| attention(&t[0], &t[1], &t[2], &options);
            assert_agree(&ours, &|t| by_candle(t, &options), &inputs, 1e-9, &format!("case {index}"));
        }
    }
}

#[test]
fn gradients_are_difference_quotients() {
    for (index, (inputs, causal, mask)) in cases().into_iter().enumerate() {
        for options in [options(causal, mask.as_ref()), dropping(causal, mask.as_ref())] {
            let ours = |t: &[Tensor]| attention(&t[0], &t[1], &t[2], &options);
            assert_differences(&ours, &inputs, 1e-6, &format!("case {index}"));
        }
    }
}

/// Queries, keys, and values that make the output the probabilities themselves.
fn see_through(q: &Tensor, k: &Tensor) -> Vec<Tensor> {
    let (batch, keys, heads, size) = k.dims4().unwrap();
    let identity = Tensor::eye(keys, DType::F64, &Device::Cpu).unwrap().reshape((1, keys, 1, size)).unwrap();
    let v = identity.broadcast_as((batch, keys, heads, size)).unwrap().contiguous().unwrap();
    vec![q.clone(), k.clone(), v]
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_dropped_probability_is_zero_and_the_others_are_scaled() {
    let shape = [2, 64, 3, 64];
    let t = see_through(&random("q", &shape), &random("k", &shape));
    let run = |options| flat(&attention(&t[0], &t[1], &t[2], &options).unwrap());
    let (whole, part) = (run(options(true, None)), run(dropping(true, None)));
    for (whole, part) in whole.iter().zip(&part) {
        assert!(*part == 0.0 || (part - 1.5 * whole).abs() < 1e-12, "{part} of {whole}");
    }
    let seen = whole.iter().filter(|whole| **whole > 0.0).count() as f64;
    let kept = part.iter().filter(|part| **part > 0.0).count() as f64;
    // 12,480 draws: the standard error is 0.4%.
    assert!((kept / seen - 2.0 / 3.0).abs() < 0.02, "{kept} of {seen}");
}

#[test]
fn queries_heads_and_sequences_drop_keys_of_their_own_and_the_mean_is_kept() {
    let (batch, length, heads) = (2, 64, 3);
    let t = see_through(
        &Tensor::zeros((batch, length, heads, 64), DType::F64, &Device::Cpu).unwrap(),
        &random("k", &[batch, 64, heads, 64]),
    );
    // Without scores all keys have the same probability.
    let y = flat(&attention(&t[0], &t[1], &t[2], &dropping(false, None)).unwrap());
    let rows: Vec<&[f64]> = y.chunks(64).collect();
    for (index, row) in rows.iter().enumerate() {
        assert!(rows[..index].iter().all(|other| other != row), "row {index}");
    }
    let mean = y.iter().sum::<f64>() / rows.len() as f64;
    assert!((mean - 1.0).abs() < 0.02, "{mean}");
}

#[test]
fn a_probability_of_zero_is_no_dropout_to_the_bit() {
    let inputs = inputs([2, 5, 6, 3], 9, 2);
    let none = AttentionOptions { dropout: Some(DropoutMask::new(11, 0.0)), ..options(true, None) };
    let run = |options: AttentionOptions<'_>| {
        let run = |t: &[Tensor]| attention(&t[0], &t[1], &t[2], &options);
        let (y, mut all) = gradients(&run, &inputs);
        all.push(y);
        all.iter().flat_map(flat).map(f64::to_bits).collect::<Vec<u64>>()
    };
    assert_eq!(run(none), run(options(true, None)));
}

#[test]
fn strided_inputs_give_the_same() {
    let heads_first = [random("q", &[2, 4, 5, 3]), random("k", &[2, 2, 5, 3]), random("v", &[2, 2, 3, 5])];
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
    for options in [options(true, Some(&mask)), dropping(true, Some(&mask))] {
        let options = AttentionOptions { scale: 8f64.sqrt().recip(), ..options };
        let ours = |t: &[Tensor]| attention(&t[0], &t[1], &t[2], &options);
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 5e-3), (DType::BF16, 3e-2)] {
            assert_precise(&ours, &all, dtype, tolerance, "attention");
        }
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
    assert!(attention(&all[0], &all[1], &random("v", &[1, 2, 2, 4]), &options(false, None)).is_err());
    let short = Tensor::ones((1, 2), DType::U8, &Device::Cpu).unwrap();
    assert!(attention(&all[0], &all[1], &all[2], &options(false, Some(&short))).is_err());
}
