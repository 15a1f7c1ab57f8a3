//! Gradients compared with slopes of the loss.

use std::cell::Cell;

use candle_core::{DType, Tensor};
use candle_nn::{Linear, Module};
use peft_runtime::error::TrainingError;
use peft_runtime::prelude::*;
use peft_runtime::train::check_gradients;
use peft_runtime::{Error, InjectOptions};
use peft_tests::tensors::random;

use super::bits;

#[derive(Debug, Injectable)]
struct Gated {
    value: Adapted<Linear>,
    gate: Adapted<Linear>,
}

impl Gated {
    fn new(dtype: DType) -> Self {
        Self::with_options(dtype, InjectOptions::new())
    }

    fn with_options(dtype: DType, options: InjectOptions) -> Self {
        let linear = || Adapted::new(Linear::new(random((6, 6)).to_dtype(dtype).unwrap(), None));
        let mut model = Self { value: linear(), gate: linear() };
        let config = LoraConfig::new(2, 4.0).with_targets("all-linear").with_init(LoraInit::Random);
        model.inject_adapter_with(&config, "default", options).unwrap();
        model
    }

    /// The mean of the squares of value · gate, where `share` of the gate passes gradients on.
    fn loss(&self, x: &Tensor, share: f64) -> candle_core::Result<Tensor> {
        let gate = self.gate.forward(x)?;
        let gate = ((&gate * share)? + (gate.detach() * (1.0 - share))?)?;
        (self.value.forward(x)? * gate)?.sqr()?.mean_all()
    }

    fn variables(&self) -> Vec<Vec<u64>> {
        self.trainable_parameters().iter().map(|(_, var)| bits(var).unwrap()).collect()
    }
}

#[test]
fn right_gradients_are_the_slopes_and_the_variables_stay_as_they_were() {
    for (dtype, tolerance) in [(DType::F64, 1e-6), (DType::F32, 5e-3)] {
        let (model, x) = (Gated::new(dtype), random((5, 6)).to_dtype(dtype).unwrap());
        let before = model.variables();
        let check = check_gradients(&model, || model.loss(&x, 1.0)).unwrap();
        assert_eq!(model.variables(), before, "{dtype:?}");
        assert_eq!(check.slopes().len(), 5);
        assert!(check.largest_error() < tolerance, "{dtype:?}\n{check}");
        check.ensure_within(0.01).unwrap();
        // A slope that is not measured sharply would pass for any gradient.
        let along = check.slopes()[0];
        assert!(along.uncertainty < 0.01 * along.measured, "{dtype:?}\n{check}");
    }
}

#[test]
fn a_gradient_that_is_there_and_wrong_is_found() {
    for dtype in [DType::F64, DType::F32] {
        let (model, x) = (Gated::new(dtype), random((5, 6)).to_dtype(dtype).unwrap());
        for share in [0.5, 0.9] {
            let check = check_gradients(&model, || model.loss(&x, share)).unwrap();
            let error = check.ensure_within(0.01).unwrap_err();
            assert!(matches!(error, Error::Training(TrainingError::WrongGradients { .. })), "{error}");
            let text = error.to_string();
            assert!(text.contains("by more than 0.01") && text.contains("random direction 4"), "{text}");
        }
    }
}

#[test]
fn a_loss_that_changes_or_is_not_finite_is_refused() {
    let (model, x, calls) = (Gated::new(DType::F32), random((5, 6)), Cell::new(0.0));
    let before = model.variables();
    let changing = || {
        calls.set(calls.get() + 1.0);
        model.loss(&x, 1.0)? + calls.get()
    };
    let error = check_gradients(&model, changing).unwrap_err();
    assert!(error.to_string().contains("in the next call"), "{error}");
    assert!(check_gradients(&model, || model.loss(&x, 1.0)? * f64::NAN).is_err());
    assert!(check_gradients(&model, || candle_core::bail!("no batch")).is_err());
    assert_eq!(model.variables(), before);
}

#[test]
fn a_missing_gradient_and_half_precision_are_refused_by_name() {
    let (model, x) = (Gated::new(DType::F32), random((5, 6)));
    let only_value = || model.value.forward(&x)?.sqr()?.mean_all();
    let error = check_gradients(&model, only_value).unwrap_err().to_string();
    assert!(error.contains("`gate` (lora_A.default.weight, lora_B.default.weight)"), "{error}");

    let options = InjectOptions::new().autocast_adapter_dtype(false);
    let model = Gated::with_options(DType::BF16, options);
    let error = check_gradients(&model, || candle_core::bail!("not called")).unwrap_err().to_string();
    assert!(error.contains("value.lora_A") && error.contains("bf16"), "{error}");
}
