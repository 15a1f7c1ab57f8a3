//! Sums of adapters: what the parity cases leave out.

use candle_core::{Device, Tensor};
use peft_runtime::TargetModules;
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

fn head(model: &Model, name: &str, end: &str) -> Tensor {
    model.adapter_state_dict(name).unwrap()[&format!("base_model.model.head.{end}")].clone()
}

const EVERY_TYPE: [CombinationType; 5] = [
    CombinationType::Linear,
    CombinationType::Cat,
    CombinationType::Svd,
    CombinationType::Ties,
    CombinationType::MagnitudePrune,
];

#[test]
fn the_biases_of_b_are_combined_as_updates_are() {
    let x = Model::input();
    let mut model = Model::new();
    let config = LoraConfig::new(2, 4.0).with_targets(["head"]);
    model.add(&config.clone().with_lora_bias(true), "a");
    model.add(&config, "b");
    model.add(&config.clone().with_lora_bias(true), "c");
    let output = |model: &mut Model, names: &[&str]| {
        model.set_adapters(names).unwrap();
        model.forward(&x)
    };
    let together = output(&mut model, &["a", "b", "c"]);
    // Whatever comes first: the sum has a bias if any of its parts has one.
    for parts in [[("a", 1.0), ("b", 1.0), ("c", 1.0)], [("b", 1.0), ("a", 1.0), ("c", 1.0)]] {
        let options = CombineOptions::new(CombinationType::Cat);
        model.add_weighted_adapter(&parts, "sum", &options).unwrap();
        assert_close(&output(&mut model, &["sum"]), &together, Tolerance::absolute(1e-4), "the output");
        model.delete_adapter("sum").unwrap();
    }
    for kind in EVERY_TYPE {
        let options = CombineOptions::new(kind).with_density(1.0);
        model.add_weighted_adapter(&[("a", 0.5), ("c", -1.0)], "sum", &options).unwrap();
        let [sum, a, c] = ["sum", "a", "c"].map(|name| head(&model, name, "lora_B.bias"));
        // The scaling of the parts is 2.
        let exact = (a - (c * 2.0).unwrap()).unwrap();
        if kind != CombinationType::Ties {
            assert_close(&sum, &exact, Tolerance::absolute(1e-5), kind);
        }
        assert!(sum.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > 0.1, "{kind}");
        model.delete_adapter("sum").unwrap();
    }
    let restarted = CombineOptions::new(CombinationType::Cat).with_restarts(true);
    model.add_weighted_adapter(&[("a", 1.0), ("c", 1.0)], "sum", &restarted).unwrap();
    let bias = head(&model, "sum", "lora_B.bias");
    assert_close(&bias, &bias.zeros_like().unwrap(), Tolerance::absolute(0.0), "as in PEFT");
}

#[test]
fn dora_has_no_sum_unless_its_magnitudes_may_start_again() {
    let mut model = model();
    model.add(&LoraConfig::new(2, 4.0).with_targets(["head"]).with_dora(true), "dora");
    for kind in EVERY_TYPE {
        let options = CombineOptions::new(kind).with_density(0.5);
        for parts in [&[("dora", 1.0)][..], &[("dora", 1.0), ("a", 1.0)], &[("a", 1.0), ("dora", 1.0)]] {
            let error = model.add_weighted_adapter(parts, "sum", &options).unwrap_err().to_string();
            assert!(
                error.contains("`dora`") && error.contains("DoRA gives the weight a trained magnitude"),
                "{error}"
            );
        }
    }
    let options = CombineOptions::new(CombinationType::Cat).with_restarts(true);
    model.add_weighted_adapter(&[("dora", 1.0), ("a", 1.0)], "sum", &options).unwrap();
    let weight = &model.base_state_dict()["head.weight"];
    let lengths = weight.sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
    assert_close(
        &head(&model, "sum", "lora_magnitude_vector"),
        &lengths,
        Tolerance::absolute(1e-5),
        "the lengths of the base weight, as in PEFT",
    );
}

#[test]
fn full_copies_are_taken_over_whichever_part_has_them() {
    let x = Model::input();
    let mut model = Model::new();
    let config = LoraConfig::new(2, 4.0).with_targets(["head"]);
    model.add(&config, "a");
    model.add(&config.clone().with_modules_to_save(["norm"]), "b");
    model.set_adapters(&["a", "b"]).unwrap();
    let together = model.forward(&x);
    for parts in [[("a", 1.0), ("b", 1.0)], [("b", 1.0), ("a", 1.0)]] {
        let options = CombineOptions::new(CombinationType::Cat);
        let report = model.add_weighted_adapter(&parts, "sum", &options).unwrap();
        assert_eq!(report.copied.iter().map(ToString::to_string).collect::<Vec<_>>(), ["norm"]);
        model.set_adapter("sum").unwrap();
        assert_close(&model.forward(&x), &together, Tolerance::absolute(1e-4), "the output");
        let state = model.adapter_state_dict("sum").unwrap();
        let copy = &model.adapter_state_dict("b").unwrap()["base_model.model.norm.weight"];
        let own = &state["base_model.model.norm.weight"];
        assert_close(own, copy, Tolerance::absolute(0.0), "the copy");
        // It is a copy of the copy.
        model.set_trainable("sum", true).unwrap();
        for (_, var) in model.trainable_parameters() {
            var.set(&var.zeros_like().unwrap()).unwrap();
        }
        let after = &model.adapter_state_dict("b").unwrap()["base_model.model.norm.weight"];
        assert_close(after, copy, Tolerance::absolute(0.0), "the part's own");
        model.delete_adapter("sum").unwrap();
    }
    // As in PEFT, where only the first adapter's modules are copied, and start again.
    let restarted = CombineOptions::new(CombinationType::Cat).with_restarts(true);
    let report = model.add_weighted_adapter(&[("a", 1.0), ("b", 1.0)], "none", &restarted).unwrap();
    assert!(report.copied.is_empty());
    model.add_weighted_adapter(&[("b", 1.0), ("a", 1.0)], "fresh", &restarted).unwrap();
    let fresh = &model.adapter_state_dict("fresh").unwrap()["base_model.model.norm.weight"];
    assert_close(fresh, &model.base_state_dict()["norm.weight"], Tolerance::absolute(0.0), "the base's");
}

#[test]
fn a_layer_that_one_part_adapts_and_another_copies_has_no_sum() {
    let mut model = Model::new();
    model.add(&LoraConfig::new(2, 4.0).with_targets(["head"]), "a");
    model.add(&LoraConfig::new(2, 4.0).with_targets(["out"]).with_modules_to_save(["head"]), "b");
    let options = CombineOptions::new(CombinationType::Cat);
    for parts in [[("a", 1.0), ("b", 1.0)], [("b", 1.0), ("a", 1.0)]] {
        let error = model.add_weighted_adapter(&parts, "sum", &options).unwrap_err().to_string();
        assert!(error.contains("it adapts `head`, of which `b` has a full copy"), "{error}");
    }
}

#[test]
fn what_scales_inputs_in_a_sum_is_what_did_in_its_parts() {
    let ia3 = |target: &str, feedforward: &str| {
        Ia3Config::new().with_targets(TargetModules::regex(target)).with_feedforward([feedforward])
    };
    let mut model = Model::new();
    // The name of one config means a layer of the other, whose output is scaled.
    model.add(&ia3(".*out", "head"), "a");
    model.add(&ia3("head", "nothing"), "b");
    model.add_weighted_adapter(&[("a", 1.0), ("b", 1.0)], "sum", &CombineOptions::default()).unwrap();
    for (end, part) in [("block.out.ia3_l", "a"), ("head.ia3_l", "b")] {
        let key = format!("base_model.model.{end}");
        let [sum, own] = ["sum", part].map(|name| model.adapter_state_dict(name).unwrap()[&key].clone());
        assert_close(&sum, &own, Tolerance::absolute(0.0), end);
    }
}
