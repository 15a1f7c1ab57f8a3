use candle_core::{DType, Tensor, Var};

use super::{ConvSettings, conv, half_conv_with_bias};
use crate::ops::testing::{assert_close, assert_differences, assert_precise, random};

/// Every shape × settings.
#[test]
fn the_value_is_candles_and_gradients_are_difference_quotients() {
    let settings = |padding, stride, dilation, groups| ConvSettings { padding, stride, dilation, groups };
    let cases = [
        (vec![3, 2, 7], vec![4, 2, 3], settings(1, 2, 1, 1)),
        (vec![2, 4, 9], vec![6, 2, 2], settings(0, 1, 3, 2)),
        (vec![2, 3, 6, 5], vec![4, 3, 3, 3], settings(1, 2, 1, 1)),
        (vec![2, 4, 5, 7], vec![4, 1, 2, 3], settings(2, 1, 2, 4)),
    ];
    for (input, kernel, settings) in cases {
        let what = format!("{input:?} {kernel:?}");
        let inputs = [random("x", &input), random("kernel", &kernel)];
        let ours = |t: &[Tensor]| conv(&t[0], &t[1], settings);
        let [x, kernel] = inputs.each_ref().map(|tensor| tensor.to_dtype(DType::F32).unwrap());
        let ConvSettings { padding, stride, dilation, groups } = settings;
        let theirs = match input.len() {
            3 => x.conv1d(&kernel, padding, stride, dilation, groups),
            _ => x.conv2d(&kernel, padding, stride, dilation, groups),
        };
        assert_close(&ours(&inputs).unwrap(), &theirs.unwrap(), 3e-6, &what);
        assert_differences(&ours, &inputs, 1e-8, &what);
        // Half a unit in the last place: each result is rounded once.
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 5e-4), (DType::BF16, 4e-3)] {
            assert_precise(&ours, &inputs, dtype, tolerance, &what);
        }
    }
}

#[test]
fn a_frozen_kernel_gets_no_gradient() {
    let x = Var::from_tensor(&random("x", &[2, 1, 5])).unwrap();
    let kernel = random("kernel", &[3, 1, 2]);
    let settings = ConvSettings { padding: 0, stride: 1, dilation: 1, groups: 1 };
    let grads = conv(&x, &kernel, settings).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_some() && grads.get(&kernel).is_none());
}

#[test]
fn a_bias_in_half_precision_is_rounded_together_with_the_sum() {
    let settings = ConvSettings { padding: 1, stride: 2, dilation: 1, groups: 2 };
    // Half a unit in the last place.
    for (dtype, unit) in [(DType::BF16, 4e-3), (DType::F16, 5e-4)] {
        for (input, kernel) in [(vec![2, 4, 6, 5], vec![6, 2, 3, 3]), (vec![3, 4, 7], vec![6, 2, 3])] {
            let [x, kernel, bias] = [("x", input.as_slice()), ("kernel", kernel.as_slice()), ("bias", &[6])]
                .map(|(label, shape)| random(label, shape).to_dtype(dtype).unwrap());
            let x = Var::from_tensor(&x).unwrap();
            let ours = half_conv_with_bias(&x, &kernel, &bias, settings).unwrap().unwrap();
            let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
            let mut channels = vec![1; input.len()];
            channels[1] = 6;
            let sum = conv(&wide(&x.detach()), &wide(&kernel), settings).unwrap();
            let exact = sum.broadcast_add(&wide(&bias).reshape(channels).unwrap()).unwrap();
            assert_close(&ours, &exact, unit, &format!("{dtype:?} {input:?}"));

            // The gradient of the sum does not depend on the bias.
            let slope = |y: &Tensor| {
                let sum = y.to_dtype(DType::F32).unwrap().sum_all().unwrap();
                wide(sum.backward().unwrap().get(&x).unwrap())
            };
            let without = conv(&x, &kernel, settings).unwrap();
            assert_close(&slope(&ours), &slope(&without), 0.0, "the gradient");
        }
    }
    let f32s = random("x", &[1, 2, 5]).to_dtype(DType::F32).unwrap();
    let none = half_conv_with_bias(&f32s, &f32s.narrow(2, 0, 2).unwrap(), &f32s, settings).unwrap();
    assert!(none.is_none(), "not of half precision");
}
