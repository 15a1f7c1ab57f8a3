use candle_core::{DType, Device, Tensor};

use super::{DropoutMask, ROW, dropout};
use crate::ops::constant::mul_constant;
use crate::ops::testing::{assert_agree, assert_close, assert_differences, assert_precise, random};

/// What a mask multiplies by, in the order of the elements.
fn factors(mask: DropoutMask, dims: &[usize]) -> Tensor {
    let mut factors = vec![1f64; dims.iter().product()];
    for (row, factors) in factors.chunks_mut(ROW).enumerate() {
        mask.apply(row, factors);
    }
    Tensor::from_vec(factors, dims, &Device::Cpu).unwrap()
}

#[test]
fn value_and_gradient_are_those_of_a_product_with_the_mask_and_of_difference_quotients() {
    // Several rows of the mask, and a tail.
    let (x, mask) = ([random("x", &[3, 70, 50])], DropoutMask::new(5, 0.3));
    let by_product = factors(mask, x[0].dims());
    let ours = |t: &[Tensor]| dropout(&t[0], mask);
    assert_agree(&ours, &|t| mul_constant(&t[0], &by_product), &x, 1e-12, "dropout");
    assert_differences(&ours, &x, 1e-6, "dropout");
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        assert_precise(&ours, &x, dtype, tolerance, "dropout");
    }
}

#[test]
fn the_mean_is_kept() {
    let ones = Tensor::ones((100, 1000), DType::F32, &Device::Cpu).unwrap();
    for key in 0..3 {
        let mean = dropout(&ones, DropoutMask::new(key, 0.25)).unwrap().mean_all().unwrap();
        let mean = mean.to_scalar::<f32>().unwrap();
        // Five standard errors.
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
    }
}

#[test]
fn strided_inputs_give_the_same_and_integers_are_refused() {
    let mask = DropoutMask::new(1, 0.5);
    let x = random("x", &[40, 30]).t().unwrap();
    let copied = x.force_contiguous().unwrap();
    assert_close(&dropout(&x, mask).unwrap(), &dropout(&copied, mask).unwrap(), 0.0, "strided");
    assert!(dropout(&Tensor::ones(3, DType::U32, &Device::Cpu).unwrap(), mask).is_err());
}

#[test]
fn an_empty_tensor_stays_one() {
    let empty = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(dropout(&empty, DropoutMask::new(1, 0.5)).unwrap().dims(), [0, 4]);
}
