use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor, Var, bail};

use super::{linear_add, quantized_linear_add};
use crate::ops::gated::swiglu;
use crate::ops::linear::input::LayerInput;
use crate::ops::linear::low_rank::LowRank;
use crate::ops::testing::{assert_agree, assert_close, assert_differences, assert_precise, random};

/// One block of a quantized weight.
const IN: usize = 32;
const OUT: usize = 5;
const RANK: usize = 3;

/// Input and residual, and the factors.
fn operands() -> Vec<Tensor> {
    vec![
        random("x", &[2, 7, IN]),
        random("residual", &[2, 7, OUT]),
        random("a", &[RANK, IN]),
        random("b", &[OUT, RANK]),
    ]
}

fn weight() -> Tensor {
    random("weight", &[OUT, IN])
}

fn bias() -> Tensor {
    random("bias", &[OUT])
}

/// The factors that follow the residual, if there are any.
fn terms(factors: &[Tensor]) -> Option<LowRank> {
    let [a, b] = factors else { return None };
    Some(LowRank { a: a.clone(), b: b.clone(), scaling: 0.5 })
}

fn one_pass(sum: Result<Option<Tensor>>) -> Result<Tensor> {
    match sum? {
        Some(sum) => Ok(sum),
        None => bail!("the sum is not one pass"),
    }
}

/// The sum for an input, with the residual and the factors in `rest`.
fn fused_with(x: LayerInput<'_>, rest: &[Tensor], bias: Option<&Tensor>) -> Result<Tensor> {
    let in_dtype = |tensor: &Tensor| tensor.to_dtype(rest[0].dtype());
    let bias = bias.map(in_dtype).transpose()?;
    one_pass(linear_add(x, &in_dtype(&weight())?, bias.as_ref(), terms(&rest[1..]).as_ref(), &rest[0]))
}

fn fused(t: &[Tensor], bias: Option<&Tensor>) -> Result<Tensor> {
    fused_with(LayerInput::Tensor(&t[0]), &t[1..], bias)
}

/// Gate and up in place of the input.
fn fused_gated(t: &[Tensor], bias: Option<&Tensor>) -> Result<Tensor> {
    fused_with(LayerInput::Swiglu { gate: &t[0], up: &t[1] }, &t[2..], bias)
}

/// The sum from candle's own ops.
fn composed(t: &[Tensor], weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let rows = t[0].reshape(((), IN))?;
    let mut y = rows.matmul(&weight.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    if let Some(LowRank { a, b, scaling }) = terms(&t[2..]) {
        y = (y + (rows.matmul(&a.t()?)?.matmul(&b.t()?)? * scaling)?)?;
    }
    &t[1] + y.reshape(t[1].dims())?
}

/// Operands without factors and with them, each without a bias and with one.
fn cases<'t>(all: &'t [Tensor], bias: &'t Tensor) -> [(&'t [Tensor], Option<&'t Tensor>); 4] {
    [(&all[..2], None), (&all[..2], Some(bias)), (all, None), (all, Some(bias))]
}

#[test]
fn value_and_gradients_are_those_of_the_composed_ops_and_of_difference_quotients() {
    let (all, bias) = (operands(), bias());
    for (inputs, bias) in cases(&all, &bias) {
        let what = format!("{} operands, bias: {}", inputs.len(), bias.is_some());
        let ours = |t: &[Tensor]| fused(t, bias);
        assert_agree(&ours, &|t| composed(t, &weight(), bias), inputs, 1e-12, &what);
        assert_differences(&ours, inputs, 1e-6, &what);
        assert_precise(&ours, inputs, DType::F32, 1e-5, &what);
    }
}

#[test]
fn a_quantized_weight_computes_what_its_dense_one_does() {
    let weight = QTensor::quantize(&weight().to_dtype(DType::F32).unwrap(), GgmlDType::Q8_0).unwrap();
    let dense = weight.dequantize(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    let (weight, all, bias) = (Arc::new(weight), operands(), bias());
    for (inputs, bias) in cases(&all, &bias) {
        let ours = |t: &[Tensor]| {
            one_pass(quantized_linear_add(
                LayerInput::Tensor(&t[0]),
                &weight,
                bias,
                terms(&t[2..]).as_ref(),
                &t[1],
            ))
        };
        assert_agree(&ours, &|t| composed(t, &dense, bias), inputs, 1e-12, "quantized");
    }
}

/// Gate and up, and the other operands.
fn gated_operands() -> Vec<Tensor> {
    [vec![random("gate", &[2, 7, IN]), random("up", &[2, 7, IN])], operands().split_off(1)].concat()
}

#[test]
fn an_input_that_is_a_product_has_the_value_and_gradients_of_the_ops_one_after_the_other() {
    let (all, bias) = (gated_operands(), bias());
    let product =
        |t: &[Tensor]| Ok::<_, candle_core::Error>([&[swiglu(&t[0], &t[1])?][..], &t[2..]].concat());
    for (inputs, bias) in
        [(&all[..3], None), (&all[..3], Some(&bias)), (&all[..], None), (&all[..], Some(&bias))]
    {
        let what = format!("{} operands, bias: {}", inputs.len(), bias.is_some());
        let ours = |t: &[Tensor]| fused_gated(t, bias);
        assert_agree(&ours, &|t| composed(&product(t)?, &weight(), bias), inputs, 1e-12, &what);
        assert_differences(&ours, inputs, 1e-6, &what);
        assert_precise(&ours, inputs, DType::F32, 1e-5, &what);
    }
}

#[test]
fn strided_factors_of_a_product_give_the_same() {
    let turned = [random("gate", &[7, 2, IN]), random("up", &[IN, 7, 2]), operands().swap_remove(1)];
    let turn = |t: &[Tensor]| {
        Ok::<_, candle_core::Error>([t[0].transpose(0, 1)?, t[1].transpose(0, 2)?, t[2].clone()])
    };
    let strided = |t: &[Tensor]| fused_gated(&turn(t)?, None);
    let copied = |t: &[Tensor]| {
        let copies = turn(t)?.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
        fused_gated(&copies, None)
    };
    assert_agree(&strided, &copied, &turned, 1e-12, "strided");
}

#[test]
fn strided_inputs_give_the_same() {
    let turned = [random("x", &[7, 2, IN]), random("residual", &[OUT, 7, 2])];
    let turn = |t: &[Tensor]| Ok::<_, candle_core::Error>([t[0].transpose(0, 1)?, t[1].transpose(0, 2)?]);
    let strided = |t: &[Tensor]| fused(&turn(t)?, None);
    let copied = |t: &[Tensor]| {
        let [x, residual] = turn(t)?;
        fused(&[x.contiguous()?, residual.contiguous()?], None)
    };
    assert_agree(&strided, &copied, &turned, 1e-12, "strided");
}

#[test]
fn constants_get_no_gradient() {
    let check = |all: &[Tensor], op: fn(&[Tensor], Option<&Tensor>) -> Result<Tensor>| {
        for (tracked, operand) in all.iter().enumerate() {
            let what = format!("operand {tracked} of {}", all.len());
            let variable = Var::from_tensor(operand).unwrap();
            let mut t = all.to_vec();
            t[tracked] = variable.as_tensor().clone();
            let grads = op(&t, Some(&bias())).unwrap().sum_all().unwrap().backward().unwrap();
            assert_eq!(grads.get_ids().count(), 1, "{what}");
            assert!(grads.get(&variable).is_some(), "{what}");
        }
        assert!(!op(all, None).unwrap().track_op());
    };
    check(&operands()[..2], fused);
    check(&operands(), fused);
    check(&gated_operands()[..3], fused_gated);
    check(&gated_operands(), fused_gated);
}

#[test]
fn several_backward_passes_go_through_one_graph_also_at_once() {
    let variables: Vec<Var> = operands().iter().map(|tensor| Var::from_tensor(tensor).unwrap()).collect();
    let t: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let y = fused(&t, None).unwrap();
    let losses = [1.0, 3.0, 9.0].map(|factor| (y.sum_all().unwrap() * factor).unwrap());
    let first = losses[0].backward().unwrap();
    let grads = std::thread::scope(|scope| {
        let passes: Vec<_> =
            losses.iter().map(|loss| scope.spawn(move || loss.backward().unwrap())).collect();
        passes.into_iter().map(|pass| pass.join().unwrap()).collect::<Vec<_>>()
    });
    for (grads, factor) in grads.iter().zip([1.0, 3.0, 9.0]) {
        for variable in &variables {
            let expected = (first.get(variable).unwrap() * factor).unwrap();
            assert_close(grads.get(variable).unwrap(), &expected, 1e-12, "a pass");
        }
    }
}

#[test]
fn what_cannot_be_one_pass_is_left_and_what_does_not_fit_is_refused() {
    let t = operands();
    let sum = |x: &Tensor, weight: &Tensor, residual: &Tensor| {
        linear_add(LayerInput::Tensor(x), weight, None, None, residual)
    };
    let left = |x: &Tensor, weight: &Tensor, residual: &Tensor| sum(x, weight, residual).unwrap().is_none();
    assert!(!left(&t[0], &weight(), &t[1]));
    assert!(left(&t[0], Var::from_tensor(&weight()).unwrap().as_tensor(), &t[1]), "the weight trains");
    assert!(left(&t[0], &weight(), &t[1].narrow(0, 0, 1).unwrap()), "candle's sums broadcast, or refuse");
    assert!(left(&t[0], &weight(), &t[1].to_dtype(DType::F32).unwrap()), "two dtypes");
    let half = |tensor: &Tensor| tensor.to_dtype(DType::BF16).unwrap();
    assert!(!left(&half(&t[0]), &half(&weight()), &half(&t[1])));
    assert!(left(&half(&t[0]), &half(&weight()), &t[1].to_dtype(DType::F32).unwrap()), "another residual");
    assert!(left(&half(&t[0]), &weight(), &half(&t[1])), "f64 among half precision");
    assert!(sum(&t[1], &weight(), &t[1]).is_err(), "an input of another size");
    let first = t[0].narrow(0, 0, 1).unwrap();
    let product = LayerInput::Swiglu { gate: &t[0], up: &first };
    assert!(linear_add(product, &weight(), None, None, &t[1]).unwrap().is_none(), "a product of two shapes");
}
