//! What the tests of ops share: random tensors, equality within a tolerance, and checks of gradients.
//!
//! Nothing here draws from candle's generator, which has no seed.

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::ops::random::{normal, stream};

/// A function of tensors.
pub(crate) type Op<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// Half the distance of the two points of a difference quotient.
const STEP: f64 = 1e-5;

/// Normal values in f64, the same in every run; a different label gives different values.
pub(crate) fn random(label: &str, shape: &[usize]) -> Tensor {
    random_as(DType::F64, label, shape)
}

/// [`random`] in another dtype.
pub(crate) fn random_as(dtype: DType, label: &str, shape: &[usize]) -> Tensor {
    normal(&mut stream(0, label, 0), 1.0, shape, dtype, &Device::Cpu).unwrap()
}

/// A variable of such values.
pub(crate) fn random_variable(dtype: DType, label: &str, shape: &[usize]) -> Var {
    Var::from_tensor(&random_as(dtype, label, shape)).unwrap()
}

/// Asserts that two tensors of one shape are equal within a tolerance: |a − b| ≤ tolerance · (1 + |b|) for every element.
pub(crate) fn assert_close(ours: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(ours.dims(), expected.dims(), "{what}");
    let flat = |tensor: &Tensor| {
        tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
    };
    for (a, b) in flat(ours).into_iter().zip(flat(expected)) {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{what}: {a}, expected {b}");
    }
}

/// What an output is weighted by: values that every float type holds exactly.
fn probe(y: &Tensor) -> Tensor {
    random("probe", y.dims()).to_dtype(DType::BF16).unwrap().to_dtype(y.dtype()).unwrap()
}

/// y = op(inputs), and the gradients of Σ y ∘ probe with respect to every input; all inputs are variables.
pub(crate) fn gradients(op: Op<'_>, inputs: &[Tensor]) -> (Tensor, Vec<Tensor>) {
    let variables: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let tensors: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let y = op(&tensors).unwrap();
    let grads = (&y * probe(&y)).unwrap().sum_all().unwrap().backward().unwrap();
    let found = variables.iter().map(|variable| grads.get(variable).unwrap().clone()).collect();
    (y, found)
}

/// Asserts that two functions agree in value and in the gradients of all inputs.
pub(crate) fn assert_agree(ours: Op<'_>, theirs: Op<'_>, inputs: &[Tensor], tolerance: f64, what: &str) {
    let (y, grads) = gradients(ours, inputs);
    let (expected, expected_grads) = gradients(theirs, inputs);
    assert_close(&y, &expected, tolerance, &format!("{what}, value"));
    for (index, (grad, expected)) in grads.iter().zip(&expected_grads).enumerate() {
        assert_close(grad, expected, tolerance, &format!("{what}, gradient of input {index}"));
    }
}

/// Asserts that the gradients of f64 inputs are the difference quotients along three directions.
pub(crate) fn assert_differences(op: Op<'_>, inputs: &[Tensor], tolerance: f64, what: &str) {
    let (y, grads) = gradients(op, inputs);
    let probe = probe(&y);
    let probed = |y: Tensor| (y * &probe).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
    for (index, grad) in grads.iter().enumerate() {
        for draw in 0..3 {
            let direction = random(&format!("direction {index} {draw}"), grad.dims());
            let at = |step: f64| {
                let mut moved = inputs.to_vec();
                moved[index] = (&inputs[index] + (&direction * step).unwrap()).unwrap();
                probed(op(&moved).unwrap())
            };
            let quotient = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let predicted = (grad * &direction).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
            let error = (quotient - predicted).abs();
            assert!(
                error <= tolerance * (1.0 + predicted.abs()),
                "{what}, input {index}: {predicted}, the quotient is {quotient}"
            );
        }
    }
}

/// Asserts that a function of inputs in `dtype` agrees with the same function in f64, in value and gradients.
pub(crate) fn assert_precise(op: Op<'_>, inputs: &[Tensor], dtype: DType, tolerance: f64, what: &str) {
    let narrow: Vec<Tensor> = inputs.iter().map(|input| input.to_dtype(dtype).unwrap()).collect();
    // The rounding of the inputs is not an error of the op.
    let wide: Vec<Tensor> = narrow.iter().map(|input| input.to_dtype(DType::F64).unwrap()).collect();
    let (y, grads) = gradients(op, &narrow);
    let (expected, expected_grads) = gradients(op, &wide);
    let what = format!("{what} in {dtype:?}");
    assert_close(&y, &expected, tolerance, &what);
    for (grad, expected) in grads.iter().zip(&expected_grads) {
        assert_eq!(grad.dtype(), dtype, "{what}");
        assert_close(grad, expected, tolerance, &what);
    }
}
