//! Sums of adapters: what the parity cases leave out.

use candle_core::{Device, Tensor};
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close};

use crate::Model;

/// A model with two adapters of rank 2 on `head`, with the same values in every run.
fn model() -> Model {
    let config = LoraConfig::new(2, 4.0).with_targets(["head"]);
    let mut model = Model::new();
    for (number, name) in ["a", "b"].into_iter().enumerate() {
        model.inject_adapter(&config, name).unwrap();
        let mut state = model.adapter_state_dict(name).unwrap();
        for tensor in state.values_mut() {
            let values: Vec<f32> =
                (0..tensor.elem_count()).map(|place| (place as f32 * 1.7 + number as f32).sin()).collect();
            *tensor = Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap();
        }
        model.load_adapter_state_dict(&state, name).unwrap();
    }
    model
}

fn factors(model: &Model, name: &str) -> [Tensor; 2] {
    let state = model.adapter_state_dict(name).unwrap();
    ["A", "B"].map(|letter| state[&format!("base_model.model.head.lora_{letter}.weight")].clone())
}

fn product([a, b]: &[Tensor; 2]) -> Tensor {
    b.matmul(a).unwrap()
}

#[test]
fn a_clamp_cuts_the_factors_at_a_quantile_of_all_their_elements() {
    let mut model = model();
    let options = CombineOptions::new(CombinationType::Svd).with_svd_rank(2);
    let parts = [("a", 0.7), ("b", 0.4)];
    model.add_weighted_adapter(&parts, "free", &options).unwrap();
    model.add_weighted_adapter(&parts, "clamped", &options.with_svd_clamp(0.9)).unwrap();
    let (free, clamped) = (factors(&model, "free"), factors(&model, "clamped"));
    let mut all: Vec<f64> = free
        .iter()
        .flat_map(|factor| factor.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        .map(f64::from)
        .collect();
    all.sort_by(f64::total_cmp);
    // 2 x 7 and 3 x 2 elements: the quantile lies a tenth of the way from the 18th to the 19th.
    assert_eq!(all.len(), 20);
    let quantile = all[17] + 0.1 * (all[18] - all[17]);
    assert!(quantile > 0.0 && all[19] > quantile, "something is cut");
    for (free, clamped) in free.iter().zip(&clamped) {
        assert_close(
            clamped,
            &free.clamp(-quantile, quantile).unwrap(),
            Tolerance::absolute(1e-6),
            "the clamped factor",
        );
    }
}

#[test]
fn weights_that_cancel_leave_nothing_and_equal_ones_double_the_update() {
    let mut model = model();
    for kind in [CombinationType::Cat, CombinationType::Svd] {
        let options = CombineOptions::new(kind);
        model.add_weighted_adapter(&[("a", 1.0), ("a", -1.0)], "none", &options).unwrap();
        let none = product(&factors(&model, "none"));
        assert_close(&none, &none.zeros_like().unwrap(), Tolerance::absolute(1e-6), kind);
        model.add_weighted_adapter(&[("a", 1.0), ("a", 1.0)], "twice", &options).unwrap();
        // The scaling of `a` is 2, and that of a sum is 1.
        let expected = (product(&factors(&model, "a")) * 4.0).unwrap();
        assert_close(&product(&factors(&model, "twice")), &expected, Tolerance::absolute(1e-5), kind);
        model.delete_adapter("none").unwrap();
        model.delete_adapter("twice").unwrap();
    }
}

#[test]
fn a_sum_is_frozen_and_inactive_and_acts_as_its_parts_do_together() {
    let mut model = model();
    let x = Model::input();
    model.set_adapters(&["a", "b"]).unwrap();
    let both = model.forward(&x);
    let options = CombineOptions::new(CombinationType::Cat);
    let report = model.add_weighted_adapter(&[("a", 1.0), ("b", 1.0)], "sum", &options).unwrap();
    assert!(!report.active);
    assert_eq!(model.active_adapters(), ["a", "b"]);
    model.set_adapter("sum").unwrap();
    assert_close(&model.forward(&x), &both, Tolerance::absolute(1e-4), "the output");
    assert!(model.trainable_parameters().is_empty());
    model.set_trainable("sum", true).unwrap();
    assert_eq!(model.trainable_parameters().len(), 2);
}
