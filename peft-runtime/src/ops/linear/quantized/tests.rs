use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor, Var};

use super::quantized_linear;
use crate::ops::cpu::dequantize::tests::GGML_TYPES;
use crate::ops::cpu::gemm::multiplies_bf16;
use crate::ops::linear::input::LayerInput;
use crate::ops::linear::linear;
use crate::ops::linear::low_rank::{LowRank, can_fuse_quantized, linear_low_rank, quantized_linear_low_rank};
use crate::ops::linear::residual::{linear_add, quantized_linear_add};
use crate::ops::testing::{assert_close, random_as, random_variable};

const IN: usize = 512;
const OUT: usize = 37;

/// Divided by this, a sum over the inputs is as large as one of its terms.
fn root_of_inputs() -> f64 {
    (IN as f64).sqrt()
}

/// A quantized weight `[out, in]`, and the same weight dequantized.
fn weights(ggml: GgmlDType, dtype: DType) -> (Arc<QTensor>, Tensor) {
    let weight = (random_as(DType::F32, "weight", &[OUT, IN]) / root_of_inputs()).unwrap();
    let quantized = QTensor::quantize(&weight, ggml).unwrap();
    let dense = quantized.dequantize(&Device::Cpu).unwrap().to_dtype(dtype).unwrap();
    (Arc::new(quantized), dense)
}

/// The factors of a low-rank product.
fn factors() -> [Var; 2] {
    let a = (random_as(DType::F32, "a", &[4, IN]) / root_of_inputs()).unwrap();
    [Var::from_tensor(&a).unwrap(), random_variable(DType::F32, "b", &[OUT, 4])]
}

/// Checks two results, and the gradients of the sum of their squares.
fn assert_alike(ours: &Tensor, theirs: &Tensor, variables: &[&Var], tolerance: f64, what: &str) {
    assert_eq!(ours.dtype(), theirs.dtype(), "{what}");
    assert_close(ours, theirs, tolerance, what);
    let grads = |y: &Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let (our_grads, their_grads) = (grads(ours), grads(theirs));
    for (index, variable) in variables.iter().enumerate() {
        let (ours, theirs) = (our_grads.get(variable).unwrap(), their_grads.get(variable).unwrap());
        assert_eq!(ours.dtype(), theirs.dtype(), "{what}, variable {index}");
        assert_close(ours, theirs, tolerance, &format!("{what}, variable {index}"));
    }
    assert_eq!(our_grads.get_ids().count(), variables.len(), "{what}: something else has a gradient");
}

#[test]
fn every_type_computes_what_its_dense_weight_does() {
    for ggml in GGML_TYPES {
        let (quantized, dense) = weights(ggml, DType::F32);
        let bias = random_as(DType::F32, "bias", &[OUT]);
        for (dims, bias) in [(vec![1, IN], None), (vec![2, 35, IN], Some(&bias)), (vec![IN], None)] {
            let x = random_variable(DType::F32, "x", &dims);
            let ours = quantized_linear(&x, &quantized, bias).unwrap();
            let theirs = linear(&x, &dense, bias).unwrap();
            assert_alike(&ours, &theirs, &[&x], 1e-5, &format!("{ggml:?} {dims:?}"));
        }
    }
}

#[test]
fn every_type_does_so_fused_with_a_low_rank_product() {
    for ggml in GGML_TYPES {
        let (quantized, dense) = weights(ggml, DType::F32);
        let bias = random_as(DType::F32, "bias", &[OUT]);
        let [a, b] = factors();
        let terms = LowRank { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scaling: 0.5 };
        for dims in [vec![1, IN], vec![2, 35, IN]] {
            let x = random_variable(DType::F32, "x", &dims);
            assert!(can_fuse_quantized(&x, &quantized, Some(&bias), &terms));
            let ours = quantized_linear_low_rank(&x, &quantized, Some(&bias), &terms).unwrap();
            let theirs = linear_low_rank(&x, &dense, Some(&bias), &terms).unwrap();
            assert_alike(&ours, &theirs, &[&x, &a, &b], 1e-5, &format!("{ggml:?} {dims:?}"));
        }
        let x = random_as(DType::F32, "x", &[3, IN]);
        let ours = quantized_linear_low_rank(&x, &quantized, None, &terms).unwrap();
        let theirs = linear_low_rank(&x, &dense, None, &terms).unwrap();
        assert_alike(&ours, &theirs, &[&a, &b], 1e-5, &format!("{ggml:?}, constant input"));
    }
}

#[test]
fn other_dtypes_are_computed_as_wide_as_they_are() {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::BF16, 2e-2), (DType::F16, 2e-3)] {
        let (quantized, dense) = weights(GgmlDType::Q4_1, dtype);
        let bias = random_as(DType::F32, "bias", &[OUT]);
        let x = random_variable(dtype, "x", &[3, 5, IN]);
        let ours = quantized_linear(&x, &quantized, Some(&bias)).unwrap();
        let theirs = linear(&x, &dense, Some(&bias.to_dtype(dtype).unwrap())).unwrap();
        assert_alike(&ours, &theirs, &[&x], tolerance, &format!("{dtype:?}"));
    }
}

/// Two results that are rounded once differ by one unit in the last place at most.
#[test]
fn half_precision_is_summed_in_f32_and_rounded_once_with_a_low_rank_product_and_a_residual() {
    for (dtype, unit) in [(DType::BF16, 4e-3), (DType::F16, 5e-4)] {
        // A weight that is multiplied by bf16 is rounded to it, if there is a kernel for that.
        let rounds = dtype == DType::BF16 && multiplies_bf16(2 * 35).unwrap();
        let (quantized, dense) = weights(GgmlDType::Q4K, if rounds { dtype } else { DType::F32 });
        let bias = random_as(DType::F32, "bias", &[OUT]);
        let [a, b] = factors();
        let terms = LowRank { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scaling: 0.5 };
        let x = random_variable(dtype, "x", &[2, 35, IN]);
        assert!(can_fuse_quantized(&x, &quantized, Some(&bias), &terms));
        let ours = quantized_linear_low_rank(&x, &quantized, Some(&bias), &terms).unwrap();
        let theirs = linear_low_rank(&x, &dense, Some(&bias), &terms).unwrap();
        assert_alike(&ours, &theirs, &[&x, &a, &b], unit, &format!("{dtype:?}"));

        let residual = random_variable(dtype, "residual", &[2, 35, OUT]);
        for terms in [None, Some(&terms)] {
            let input = LayerInput::Tensor(&x);
            let ours = quantized_linear_add(input, &quantized, Some(&bias), terms, &residual).unwrap();
            let theirs = linear_add(input, &dense, Some(&bias), terms, &residual).unwrap();
            let variables: &[&Var] =
                if terms.is_some() { &[&x, &a, &b, &residual] } else { &[&x, &residual] };
            let what = format!("{dtype:?}, with a residual, {} variables", variables.len());
            assert_alike(&ours.unwrap(), &theirs.unwrap(), variables, unit, &what);
        }
    }
}

#[test]
fn a_strided_input_is_read_as_it_is() {
    let (quantized, dense) = weights(GgmlDType::Q5_1, DType::F32);
    let x = random_variable(DType::F32, "x", &[IN, 6]);
    let turned = x.t().unwrap();
    let ours = quantized_linear(&turned, &quantized, None).unwrap();
    let theirs = linear(&turned, &dense, None).unwrap();
    assert_close(&ours, &theirs, 1e-5, "forward");
    let grad = |y: Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap().get(&x).unwrap().clone();
    assert_close(&grad(ours), &grad(theirs), 1e-5, "backward");
}

#[test]
fn a_bias_that_is_a_variable_trains() {
    let (quantized, dense) = weights(GgmlDType::Q8_0, DType::F32);
    let (x, bias) = (random_variable(DType::F32, "x", &[7, IN]), random_variable(DType::F32, "bias", &[OUT]));
    let ours = quantized_linear(&x, &quantized, Some(&bias)).unwrap();
    let theirs = linear(&x, &dense, Some(&bias)).unwrap();
    assert_close(&ours, &theirs, 1e-5, "forward");
    for variable in [&x, &bias] {
        let grad = |y: &Tensor| {
            y.sqr().unwrap().sum_all().unwrap().backward().unwrap().get(variable).unwrap().clone()
        };
        assert_close(&grad(&ours), &grad(&theirs), 1e-5, "backward");
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let (quantized, _) = weights(GgmlDType::Q4_0, DType::F32);
    let wrong = |x: Tensor| quantized_linear(&x, &quantized, None).unwrap_err().to_string();
    assert!(wrong(random_as(DType::F32, "x", &[2, IN + 1])).contains("512 input features"));
    assert!(wrong(Tensor::zeros((2, IN), DType::U32, &Device::Cpu).unwrap()).contains("floats only"));
    let short = random_as(DType::F32, "bias", &[OUT - 1]);
    let x = random_as(DType::F32, "x", &[2, IN]);
    assert!(quantized_linear(&x, &quantized, Some(&short)).is_err());
}
