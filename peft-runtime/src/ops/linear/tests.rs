//! Layers of half precision compared with f64, computed by definition from the same stored values.

use candle_core::{DType, Device, Result, Tensor, Var};

use super::input::LayerInput;
use super::linear;
use super::low_rank::{LowRank, can_fuse, linear_low_rank, low_rank};
use super::residual::linear_add;
use crate::ops::gated::swiglu;
use crate::ops::testing::{Op, gradients, random};

const IN: usize = 37;
const OUT: usize = 21;
const RANK: usize = 3;
const SCALING: f64 = 0.5;

const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// How far a value may be from the exact one, relative to it: half a unit in the last place of a number just above a power of two.
fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => f64::powi(2.0, -8),
        DType::F16 => f64::powi(2.0, -11),
        _ => 0.0,
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Asserts that the values are the exact ones after one rounding, up to the error of sums in f32.
fn assert_rounded_once(ours: &Tensor, exact: &Tensor, what: &str) {
    assert_eq!(ours.dims(), exact.dims(), "{what}");
    let (dtype, exact) = (ours.dtype(), values(exact));
    let largest = exact.iter().fold(0f64, |most, value| most.max(value.abs()));
    for (ours, exact) in values(ours).into_iter().zip(exact) {
        let bound = 1e-5 * largest + rounding(dtype) * exact.abs();
        assert!((ours - exact).abs() <= bound, "{what}: {ours}, expected {exact}");
    }
}

/// Values of `label` as `dtype` holds them.
fn stored(dtype: DType, label: &str, shape: &[usize]) -> Tensor {
    random(label, shape).to_dtype(dtype).unwrap()
}

/// Asserts that an op computes in `dtype`, and what `exact` computes in f64 from the same values; likewise the gradients, each in the
/// dtype of its input.
fn check(ours: Op<'_>, exact: Op<'_>, inputs: &[Tensor], dtype: DType, what: &str) {
    let wide: Vec<Tensor> = inputs.iter().map(|input| input.to_dtype(DType::F64).unwrap()).collect();
    let (y, grads) = gradients(ours, inputs);
    let (expected, expected_grads) = gradients(exact, &wide);
    assert_eq!(y.dtype(), dtype, "{what}");
    assert_rounded_once(&y, &expected, &format!("{what}, value"));
    for (index, (grad, input)) in grads.iter().zip(inputs).enumerate() {
        assert_eq!(grad.dtype(), input.dtype(), "{what}, gradient of input {index}");
        assert_rounded_once(grad, &expected_grads[index], &format!("{what}, gradient of input {index}"));
    }
}

/// `x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ` from candle's own ops, for an input and, perhaps, the factors.
fn composed(x: &Tensor, factors: &[Tensor], weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64);
    let mut dims = x.dims().to_vec();
    dims[x.rank() - 1] = weight.dim(0)?;
    let rows = x.reshape(((), weight.dim(1)?))?;
    let mut y = rows.matmul(&wide(weight)?.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(&wide(bias)?)?;
    }
    if let [a, b] = factors {
        y = (y + (rows.matmul(&a.t()?)?.matmul(&b.t()?)? * SCALING)?)?;
    }
    y.reshape(dims)
}

fn terms(factors: &[Tensor]) -> LowRank {
    LowRank { a: factors[0].clone(), b: factors[1].clone(), scaling: SCALING }
}

/// Dtypes of input, weight and factors with half precision among them.
fn dtypes() -> impl Iterator<Item = [DType; 3]> {
    let all = TYPES.into_iter().flat_map(|x| TYPES.into_iter().flat_map(move |w| TYPES.map(|f| [x, w, f])));
    all.filter(|dtypes| *dtypes != [DType::F32; 3])
}

/// One row, and many, with two dimensions before the last.
const SHAPES: [&[usize]; 3] = [&[IN], &[3, IN], &[2, 35, IN]];

#[test]
fn a_frozen_layer_is_rounded_once_in_both_passes() {
    for [x_dtype, w_dtype, _] in dtypes() {
        for transposed in [false, true] {
            let shape = if transposed { [IN, OUT] } else { [OUT, IN] };
            let stored_weight = stored(w_dtype, "weight", &shape);
            let weight = if transposed { stored_weight.t().unwrap() } else { stored_weight };
            let bias = stored(w_dtype, "bias", &[OUT]);
            for (shape, bias) in SHAPES.into_iter().flat_map(|shape| [(shape, None), (shape, Some(&bias))]) {
                let what = format!("{x_dtype:?} {w_dtype:?} {shape:?} {transposed} {}", bias.is_some());
                let ours = |t: &[Tensor]| linear(&t[0], &weight, bias);
                let exact = |t: &[Tensor]| composed(&t[0], &[], &weight, bias);
                check(&ours, &exact, &[stored(x_dtype, "x", shape)], x_dtype, &what);
            }
        }
    }
}

#[test]
fn a_layer_with_a_low_rank_product_is_one_sum_and_rounded_once_in_both_passes() {
    for [x_dtype, w_dtype, f_dtype] in dtypes() {
        let (weight, bias) = (stored(w_dtype, "weight", &[OUT, IN]), stored(w_dtype, "bias", &[OUT]));
        let factors = [stored(f_dtype, "a", &[RANK, IN]), stored(f_dtype, "b", &[OUT, RANK])];
        for (shape, bias) in SHAPES.into_iter().flat_map(|shape| [(shape, None), (shape, Some(&bias))]) {
            let what = format!("{x_dtype:?} {w_dtype:?} {f_dtype:?} {shape:?} {}", bias.is_some());
            let inputs = [&[stored(x_dtype, "x", shape)], &factors[..]].concat();
            assert!(can_fuse(&inputs[0], &weight, bias, &terms(&factors)), "{what}");
            let ours = |t: &[Tensor]| linear_low_rank(&t[0], &weight, bias, &terms(&t[1..]));
            let exact = |t: &[Tensor]| composed(&t[0], &t[1..], &weight, bias);
            check(&ours, &exact, &inputs, x_dtype, &what);
        }
    }
}

#[test]
fn a_low_rank_product_by_itself_has_the_dtype_of_its_factors() {
    let nothing = Tensor::zeros((OUT, IN), DType::F64, &Device::Cpu).unwrap();
    for [x_dtype, _, f_dtype] in dtypes().filter(|[x, w, _]| x == w) {
        let factors = [stored(f_dtype, "a", &[RANK, IN]), stored(f_dtype, "b", &[OUT, RANK])];
        for shape in SHAPES {
            let inputs = [&[stored(x_dtype, "x", shape)], &factors[..]].concat();
            let ours = |t: &[Tensor]| low_rank(&t[0], &terms(&t[1..]));
            let exact = |t: &[Tensor]| composed(&t[0], &t[1..], &nothing, None);
            check(&ours, &exact, &inputs, f_dtype, &format!("{x_dtype:?} {f_dtype:?} {shape:?}"));
        }
    }
}

#[test]
fn a_residual_connection_is_part_of_the_sum() {
    for [x_dtype, w_dtype, f_dtype] in dtypes() {
        let (weight, bias) = (stored(w_dtype, "weight", &[OUT, IN]), stored(w_dtype, "bias", &[OUT]));
        let operands = [
            stored(x_dtype, "x", &[2, 9, IN]),
            stored(x_dtype, "residual", &[2, 9, OUT]),
            stored(f_dtype, "a", &[RANK, IN]),
            stored(f_dtype, "b", &[OUT, RANK]),
        ];
        for (inputs, bias) in
            [(&operands[..2], None), (&operands[..2], Some(&bias)), (&operands[..], Some(&bias))]
        {
            let what = format!("{x_dtype:?} {w_dtype:?} {f_dtype:?} {} {}", inputs.len(), bias.is_some());
            let ours = |t: &[Tensor]| {
                let terms = (t.len() > 2).then(|| terms(&t[2..]));
                Ok(linear_add(LayerInput::Tensor(&t[0]), &weight, bias, terms.as_ref(), &t[1])?.unwrap())
            };
            let exact = |t: &[Tensor]| &t[1] + composed(&t[0], &t[2..], &weight, bias)?;
            check(&ours, &exact, inputs, x_dtype, &what);
        }
    }
}

/// The gate's product is rounded before the layer reads it, and its gradient before the gate does.
#[test]
fn a_gated_input_computes_what_the_gate_and_the_layer_do_one_after_the_other() {
    for dtype in [DType::BF16, DType::F16] {
        let weight = stored(dtype, "weight", &[OUT, IN]);
        let inputs = [
            stored(dtype, "gate", &[5, IN]),
            stored(dtype, "up", &[5, IN]),
            stored(dtype, "residual", &[5, OUT]),
            stored(DType::F32, "a", &[RANK, IN]),
            stored(DType::F32, "b", &[OUT, RANK]),
        ];
        let sum = |input: LayerInput<'_>, t: &[Tensor]| {
            Ok(linear_add(input, &weight, None, Some(&terms(&t[3..])), &t[2])?.unwrap())
        };
        let (y, grads) = gradients(&|t| sum(LayerInput::Swiglu { gate: &t[0], up: &t[1] }, t), &inputs);
        let (expected, expected_grads) =
            gradients(&|t| sum(LayerInput::Tensor(&swiglu(&t[0], &t[1])?), t), &inputs);
        assert_eq!(values(&y), values(&expected));
        for (grad, expected) in grads.iter().zip(&expected_grads) {
            assert_eq!((grad.dtype(), values(grad)), (expected.dtype(), values(expected)));
        }
    }
}

#[test]
fn a_weight_of_half_precision_that_trains_gets_its_gradient_rounded_once() {
    for [x_dtype, w_dtype, b_dtype] in dtypes().filter(|[x, w, _]| [*x, *w] != [DType::F32; 2]) {
        for shape in SHAPES {
            let x = stored(x_dtype, "x", shape);
            let weight = stored(w_dtype, "weight", &[OUT, IN]);
            let bias = stored(b_dtype, "bias", &[OUT]);
            let what = format!("{x_dtype:?} {w_dtype:?} {b_dtype:?} {shape:?}");
            let exact = |t: &[Tensor]| {
                let mut dims = t[0].dims().to_vec();
                dims[t[0].rank() - 1] = OUT;
                let y = t[0].reshape(((), IN))?.matmul(&t[1].t()?)?;
                if t.len() > 2 { y.broadcast_add(&t[2])? } else { y }.reshape(dims)
            };
            let ours = |t: &[Tensor]| linear(&t[0], &t[1], t.get(2));
            check(&ours, &exact, &[x.clone(), weight.clone()], x_dtype, &what);
            check(&ours, &exact, &[x.clone(), weight.clone(), bias.clone()], x_dtype, &what);
            let fixed = |t: &[Tensor]| linear(&t[0], &t[1], Some(&bias));
            let exact = |t: &[Tensor]| exact(&[t[0].clone(), t[1].clone(), bias.to_dtype(DType::F64)?]);
            check(&fixed, &exact, &[x, weight], x_dtype, &what);
        }
    }
}

#[test]
fn a_frozen_weight_of_half_precision_gets_no_gradient_and_an_empty_batch_has_no_rows() {
    let (weight, x) = (stored(DType::BF16, "weight", &[OUT, IN]), stored(DType::BF16, "x", &[0, IN]));
    assert_eq!(linear(&x, &weight, None).unwrap().dims(), [0, OUT]);
    let x = Var::from_tensor(&stored(DType::BF16, "x", &[4, IN])).unwrap();
    let grads = linear(&x, &weight, None).unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(grads.get_ids().count(), 1);
    assert!(linear(&stored(DType::BF16, "x", &[4, IN + 1]), &weight, None).is_err());
}
