//! What holds for the gradients of every adapter method on every layer kind.

use candle_core::{DType, Tensor, Var};
use peft_runtime::prelude::*;
use peft_tests::float_types::{Holding, every_holding};
use peft_tests::methods::{Method, WeightChange, every_pair};
use peft_tests::specimen::{Kind, Specimen};
use peft_tests::tensors::{largest, random};

use crate::{NAME, acting, inject, named};

/// The sum of the squares, in f32 or wider.
fn squares(y: &Tensor) -> Tensor {
    let wide = if y.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    y.to_dtype(wide).unwrap().sqr().unwrap().sum_all().unwrap()
}

/// How many roundings, one after the other, a gradient has behind it at most: the layer, the head, and the gradients of both.
const ROUNDINGS: f64 = 8.0;

/// The model with the same values in double precision, and its input.
fn in_double_precision(kind: Kind, method: &Method, (model, x): (&Specimen, &Tensor)) -> (Specimen, Tensor) {
    let mut twin = Specimen::new(kind, DType::F64).unwrap();
    let base = model.base_state_dict().into_iter();
    let base = base.map(|(key, tensor)| (key, tensor.to_dtype(DType::F64).unwrap())).collect();
    // What the adapter changes in the base is in these values already; other bases may train along.
    if method.weight == WeightChange::Kept {
        twin.load_base_state_dict(&base).unwrap();
    }
    inject(&mut twin, method, NAME, Holding::of(DType::F64));
    if method.weight != WeightChange::Kept {
        twin.load_base_state_dict(&base).unwrap();
    }
    let held = model.adapter_state_dict(NAME).unwrap().into_iter();
    let held = held.map(|(key, tensor)| (key, tensor.to_dtype(DType::F64).unwrap())).collect();
    twin.load_adapter_state_dict(&held, NAME).unwrap();
    let x = if kind.is_embedding() { x.clone() } else { x.to_dtype(DType::F64).unwrap() };
    (twin, x)
}

#[test]
fn gradients_in_half_precision_are_those_in_double_precision_but_for_rounding() {
    let in_every_holding = |holding| every_pair().map(move |(kind, method)| (holding, kind, method));
    let halves = every_holding().filter(|holding| matches!(holding.dtype(), DType::BF16 | DType::F16));
    for (holding, kind, method) in halves.flat_map(in_every_holding) {
        let what = named(kind, &method, holding);
        let (model, x) = acting(kind, &method, holding);
        let (twin, wide_x) = in_double_precision(kind, &method, (&model, &x));
        let probe = random(model.forward(&x).unwrap().shape());
        let gradients = |model: &Specimen, x: &Tensor, dtype: DType| {
            let weighted =
                model.forward(x).unwrap().to_dtype(dtype).unwrap() * probe.to_dtype(dtype).unwrap();
            weighted.unwrap().sum_all().unwrap().backward().unwrap()
        };
        let (narrow, wide) = (gradients(&model, &x, DType::F32), gradients(&twin, &wide_x, DType::F64));
        let double = |tensor: &Tensor| tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
        let (mut found, mut exact) = (Vec::new(), Vec::new());
        for ((name, var), (twin_name, twin)) in
            model.trainable_parameters().iter().zip(&twin.trainable_parameters())
        {
            assert_eq!(name, twin_name, "{what}");
            found.push(double(narrow.get(var).unwrap()));
            exact.push(double(wide.get(twin).unwrap()));
        }
        // All tensors together: the terms of a single element may cancel, and rounding is relative to the terms.
        let norm =
            |tensor: &Tensor| tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
        let (found, exact) = (Tensor::cat(&found, 0).unwrap(), Tensor::cat(&exact, 0).unwrap());
        let error = norm(&(found - &exact).unwrap()) / norm(&exact);
        let allowed = ROUNDINGS * holding.float.unit_roundoff();
        assert!(error <= allowed, "{what}: off by {error:.1e}, and {allowed:.1e} is allowed");
    }
}

#[test]
fn gradients_reach_every_trainable_tensor_and_nothing_else() {
    let in_every_holding = |holding| every_pair().map(move |(kind, method)| (holding, kind, method));
    for (holding, kind, method) in every_holding().flat_map(in_every_holding) {
        let what = named(kind, &method, holding);
        let (mut model, x) = acting(kind, &method, holding);
        model.train();
        let grads = squares(&model.forward(&x).unwrap()).backward().unwrap();
        let parameters = model.trainable_parameters();
        assert!(!parameters.is_empty(), "{what}");
        for (name, var) in &parameters {
            let grad = grads.get(var).unwrap_or_else(|| panic!("{what}: `{name}` has no gradient"));
            assert_eq!((grad.dims(), grad.dtype()), (var.dims(), var.dtype()), "{what}: {name}");
            assert!(largest(grad).unwrap() > 0.0, "{what}: `{name}` has a zero gradient");
        }
        assert_eq!(grads.get_ids().count(), parameters.len(), "{what}: something else has a gradient");
    }
}

#[test]
fn the_input_gets_its_gradient_and_no_constant_keeps_one() {
    let in_every_holding = |holding| every_pair().map(move |(kind, method)| (holding, kind, method));
    let all = every_holding().flat_map(in_every_holding);
    for (holding, kind, method) in all.filter(|(_, kind, _)| !kind.is_embedding()) {
        let what = named(kind, &method, holding);
        let (mut model, x) = acting(kind, &method, holding);
        model.train();
        let x = Var::from_tensor(&x).unwrap();
        let grads = squares(&model.forward(&x).unwrap()).backward().unwrap();
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
        let (model, x) = acting(kind, &method, Holding::of(DType::F64));
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
