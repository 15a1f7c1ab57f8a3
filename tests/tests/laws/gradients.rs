//! What holds for the gradients of every adapter method on every layer kind.

use candle_core::{DType, Tensor, Var};
use peft_runtime::prelude::*;
use peft_tests::methods::every_pair;
use peft_tests::tensors::{largest, random};

use crate::acting;

#[test]
fn gradients_reach_every_trainable_tensor_and_nothing_else() {
    for (kind, method) in every_pair() {
        let what = format!("{} on {kind:?}", method.name);
        let (mut model, x) = acting(kind, &method, DType::F32);
        model.train();
        let loss = model.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let parameters = model.trainable_parameters();
        assert!(!parameters.is_empty(), "{what}");
        for (name, var) in &parameters {
            let grad = grads.get(var).unwrap_or_else(|| panic!("{what}: `{name}` has no gradient"));
            assert_eq!(grad.dims(), var.dims(), "{what}: {name}");
            assert!(largest(grad).unwrap() > 0.0, "{what}: `{name}` has a zero gradient");
        }
        assert_eq!(grads.get_ids().count(), parameters.len(), "{what}: something else has a gradient");
    }
}

#[test]
fn the_input_gets_its_gradient_and_no_constant_keeps_one() {
    for (kind, method) in every_pair().filter(|(kind, _)| !kind.is_embedding()) {
        let what = format!("{} on {kind:?}", method.name);
        let (mut model, x) = acting(kind, &method, DType::F32);
        model.train();
        let x = Var::from_tensor(&x).unwrap();
        let loss = model.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let grad = grads.get(&x).unwrap_or_else(|| panic!("{what}: the input has no gradient"));
        assert!(largest(grad).unwrap() > 0.0, "{what}");
        let wanted = model.trainable_parameters().len() + 1;
        assert_eq!(grads.get_ids().count(), wanted, "{what}: something else has a gradient");
    }
}

#[test]
fn gradients_are_the_difference_quotient() {
    for (kind, method) in every_pair() {
        let what = format!("{} on {kind:?}", method.name);
        let (model, x) = acting(kind, &method, DType::F64);
        let loss = || model.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap();
        let grads = loss().backward().unwrap();
        let is_exact = |name: &str| !method.constant_norm || name.contains("magnitude");
        let parameters = model.trainable_parameters();
        assert!(parameters.iter().any(|(name, _)| is_exact(name)), "{what}");
        for (name, var) in parameters.into_iter().filter(|(name, _)| is_exact(name)) {
            let start = var.copy().unwrap();
            let direction = random(var.shape()).to_dtype(DType::F64).unwrap();
            let direction = if kind.is_embedding() && name.contains("embedding_A") {
                // The row for padding has no gradient although it acts.
                let keeps: Vec<f64> = (0..11).map(|row| if row == 3 { 0.0 } else { 1.0 }).collect();
                direction.broadcast_mul(&Tensor::new(keeps, var.device()).unwrap()).unwrap()
            } else {
                direction
            };
            let at = |step: f64| {
                var.set(&(&start + (&direction * step).unwrap()).unwrap()).unwrap();
                loss().to_scalar::<f64>().unwrap()
            };
            let quotient = (at(1e-5) - at(-1e-5)) / 2e-5;
            var.set(&start).unwrap();
            let predicted = (grads.get(&var).unwrap() * &direction).unwrap().sum_all().unwrap();
            let predicted = predicted.to_scalar::<f64>().unwrap();
            assert!(
                (quotient - predicted).abs() < 1e-4 * predicted.abs().max(1.0),
                "{what}: {name}: {quotient} {predicted}"
            );
        }
    }
}
