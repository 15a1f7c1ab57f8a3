//! Random values depend only on the seed, and have the right distribution.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Linear, Module};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;
use peft_tests::methods::{Draws, METHODS, Target};
use peft_tests::tensors::{bits, random, same_bits};

#[derive(Clone, Injectable)]
struct Model {
    first: Adapted<Linear>,
    second: Adapted<Linear>,
}

const SIZE: usize = 64;

/// Two layers with zero weights, so that only adapters show.
fn model() -> Model {
    let zeros = || Linear::new(Tensor::zeros((SIZE, SIZE), DType::F32, &Device::Cpu).unwrap(), None);
    Model { first: zeros().into(), second: zeros().into() }
}

/// Two layers with weights to factorise.
fn dense() -> Model {
    let linear = || Linear::new(random((SIZE, SIZE)), None);
    Model { first: linear().into(), second: linear().into() }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A tensor of an adapter, by the end of its key.
fn tensor(model: &Model, name: &str, end: &str) -> Tensor {
    model.adapter_state_dict(name).unwrap()[&format!("base_model.model.{end}")].clone()
}

/// All bits of an adapter.
fn all_bits(model: &Model, name: &str) -> Vec<u64> {
    model.adapter_state_dict(name).unwrap().values().flat_map(|tensor| bits(tensor).unwrap()).collect()
}

const BOTH: [&str; 2] = ["first", "second"];

/// Every method whose initial values are drawn, for both layers.
fn methods_that_draw(seed: u64) -> impl Iterator<Item = (&'static str, Box<dyn AdapterMethod>)> {
    let drawing = METHODS.iter().filter(|method| method.draws != Draws::Nothing);
    drawing.map(move |method| (method.name, method.config_for(Target { layers: &BOTH, seed })))
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_different_ones_for_every_layer() {
    let base = dense();
    let start = |config: &dyn AdapterMethod| {
        let mut model = base.clone();
        model.inject_adapter(config, "a").unwrap();
        let weights: Vec<u64> =
            model.base_state_dict().values().flat_map(|tensor| bits(tensor).unwrap()).collect();
        (all_bits(&model, "a"), weights)
    };
    for ((name, seven), (_, eight)) in methods_that_draw(7).zip(methods_that_draw(8)) {
        let (first, again, other) = (start(&*seven), start(&*seven), start(&*eight));
        assert!(first == again, "{name}: the same seed");
        assert!(first.0 != other.0, "{name}: another seed");
    }
}

#[test]
fn the_layers_draw_from_streams_of_their_own() {
    let base = dense();
    for (name, config) in methods_that_draw(3) {
        let mut model = base.clone();
        model.inject_adapter(&*config, "a").unwrap();
        let state = model.adapter_state_dict("a").unwrap();
        for (key, first) in state.iter().filter(|(key, _)| key.contains(".first.")) {
            // Tensors that start as zeros, and IA3's two roles, cannot be compared.
            let Some(second) = state.get(&key.replace(".first.", ".second.")) else { continue };
            let constant = values(first).windows(2).all(|pair| pair[0] == pair[1]);
            let comparable = first.dims() == second.dims() && !constant;
            assert!(!comparable || !same_bits(first, second), "{name}: {key}");
        }
    }
    // A layer draws the same whether or not other layers and adapters draw.
    let config = LoraConfig::new(4, 4.0).with_init(LoraInit::Random);
    let mut company = base.clone();
    company.inject_adapter(&config.clone().with_targets(BOTH), "before").unwrap();
    company.inject_adapter(&config.clone().with_targets(BOTH), "a").unwrap();
    let mut alone = base;
    alone.inject_adapter(&config.with_targets(["second"]), "a").unwrap();
    for factor in ["second.lora_A.weight", "second.lora_B.weight"] {
        assert!(same_bits(&tensor(&company, "a", factor), &tensor(&alone, "a", factor)));
        assert!(!same_bits(&tensor(&company, "a", factor), &tensor(&company, "before", factor)));
    }
}

/// The mean and the standard deviation.
fn moments(values: &[f32]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}

#[test]
fn initial_values_have_the_distributions_of_peft() {
    let start = |config: &dyn AdapterMethod, end: &str| {
        let mut model = model();
        model.inject_adapter(config, "a").unwrap();
        values(&tensor(&model, "a", end))
    };
    let lora = |init| LoraConfig::new(16, 4.0).with_targets(BOTH).with_init(init);
    // Uniform in ±1/√64, whose standard deviation is the bound over √3; 1,024 values, and bounds of four standard errors.
    let bound = 0.125f32;
    let uniform = start(&lora(LoraInit::Default), "first.lora_A.weight");
    let (mean, deviation) = moments(&uniform);
    assert!(uniform.iter().all(|value| value.abs() <= bound));
    assert!(uniform.iter().any(|value| value.abs() > 0.98 * bound));
    let expected = f64::from(bound) / 3f64.sqrt();
    assert!(mean.abs() < 4.0 * expected / 32.0 && (deviation - expected).abs() < 0.1 * expected);
    // Normal with a standard deviation of 1/16.
    let (mean, deviation) = moments(&start(&lora(LoraInit::Gaussian), "first.lora_A.weight"));
    assert!(mean.abs() < 4.0 * 0.0625 / 32.0 && (deviation - 0.0625).abs() < 0.1 * 0.0625);
    // AdaLoRA: normal with 0.02, E zero; or all normal with 1.
    let adalora = AdaLoraConfig::new(16, 2, 10).with_targets(BOTH);
    let (mean, deviation) = moments(&start(&adalora, "first.lora_B"));
    assert!(mean.abs() < 4.0 * 0.02 / 32.0 && (deviation - 0.02).abs() < 0.1 * 0.02);
    assert!(start(&adalora, "first.lora_E").iter().all(|value| *value == 0.0));
    let (_, deviation) = moments(&start(&adalora.with_init(false), "first.lora_A"));
    assert!((deviation - 1.0).abs() < 0.1);
}

/// A model whose adapter outputs the first four features after dropout: A and B are parts of the identity.
fn see_through(seed: u64, probability: f64) -> Model {
    let config = LoraConfig::new(4, 4.0).with_targets(BOTH).with_dropout(probability).with_seed(seed);
    let mut model = model();
    model.inject_adapter(&config, "a").unwrap();
    let identity = Tensor::eye(SIZE, DType::F32, &Device::Cpu).unwrap();
    let mut state = model.adapter_state_dict("a").unwrap();
    for (key, tensor) in &mut state {
        let axis = usize::from(key.contains("lora_B"));
        *tensor = identity.narrow(axis, 0, 4).unwrap().contiguous().unwrap();
    }
    model.load_adapter_state_dict(&state, "a").unwrap();
    model.train();
    model
}

/// The masks that a layer draws for a number of rows of ones.
fn masks(layer: &Adapted<Linear>, rows: usize) -> Vec<f32> {
    let ones = Tensor::ones((rows, SIZE), DType::F32, &Device::Cpu).unwrap();
    values(&layer.forward(&ones).unwrap().narrow(1, 0, 4).unwrap().contiguous().unwrap())
}

#[test]
fn dropout_drops_its_share_and_scales_what_it_keeps() {
    let kept = masks(&see_through(0, 0.25).first, 2000);
    assert!(kept.iter().all(|value| *value == 0.0 || (value - 4.0 / 3.0).abs() < 1e-6));
    let dropped = kept.iter().filter(|value| **value == 0.0).count() as f64 / kept.len() as f64;
    // 8,000 draws: the standard error is half a percent.
    assert!((dropped - 0.25).abs() < 0.02, "{dropped}");
}

#[test]
fn the_sequence_of_masks_depends_on_the_seed_the_layer_and_the_call() {
    let (model, again, other) = (see_through(1, 0.5), see_through(1, 0.5), see_through(2, 0.5));
    let first: Vec<Vec<f32>> = (0..3).map(|_| masks(&model.first, 20)).collect();
    // The same sequence, though the other layer draws in between.
    let repeated: Vec<Vec<f32>> = (0..3)
        .map(|_| {
            let _ = masks(&again.second, 20);
            masks(&again.first, 20)
        })
        .collect();
    assert_eq!(first, repeated);
    assert!(first[0] != first[1] && first[1] != first[2], "each call draws anew");
    assert_ne!(first[0], masks(&other.first, 20), "another seed");
    assert_ne!(first[0], masks(&see_through(1, 0.5).second, 20), "another layer");
    // A clone continues from where the model is, independently.
    let copy = model.clone();
    assert_eq!(masks(&copy.first, 20), masks(&model.first, 20));
}

/// Two adapters of which the second has no weight, so that a sum shows what was done to the first.
fn two_adapters() -> Model {
    let mut model = model();
    for name in ["a", "b"] {
        let config = LoraConfig::new(16, 16.0).with_targets(BOTH).with_init(LoraInit::Random);
        model.inject_adapter(&config, name).unwrap();
    }
    model
}

const DENSITY: f64 = 0.25;

fn dare(model: &mut Model, kind: CombinationType, seed: u64) {
    let options = CombineOptions::new(kind).with_density(DENSITY).with_seed(seed);
    model.add_weighted_adapter(&[("a", 1.0), ("b", 0.0)], "sum", &options).unwrap();
}

#[test]
fn dare_keeps_its_share_of_the_elements_and_divides_them_by_it() {
    let mut model = two_adapters();
    dare(&mut model, CombinationType::DareLinear, 5);
    for key in ["first.lora_A.weight", "first.lora_B.weight", "second.lora_A.weight"] {
        let (own, sum) = (values(&tensor(&model, "a", key)), values(&tensor(&model, "sum", key)));
        let kept = sum.iter().filter(|value| **value != 0.0).count() as f64 / sum.len() as f64;
        // 1,024 draws: the standard error is 1.4%.
        assert!((kept - DENSITY).abs() < 0.06, "{key}: {kept}");
        let scaled = |(sum, own): (&f32, &f32)| *sum == 0.0 || (sum - own * 4.0).abs() < 1e-5;
        assert!(sum.iter().zip(&own).all(scaled), "{key}");
    }
}

#[test]
fn on_average_dare_leaves_the_factors_as_they_are() {
    let mut model = two_adapters();
    let key = "first.lora_A.weight";
    let own = values(&tensor(&model, "a", key));
    let mut total = vec![0f64; own.len()];
    const SEEDS: u64 = 100;
    for seed in 0..SEEDS {
        dare(&mut model, CombinationType::DareLinear, seed);
        let sum = values(&tensor(&model, "sum", key));
        total.iter_mut().zip(sum).for_each(|(total, value)| *total += f64::from(value));
        model.delete_adapter("sum").unwrap();
    }
    let dot = |a: &[f64], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum::<f64>();
    let wide: Vec<f64> = own.iter().map(|value| f64::from(*value)).collect();
    let share = dot(&total, &own) / SEEDS as f64 / dot(&wide, &own);
    // The standard deviation of one draw is √3 of an element; over 100 seeds and 1,024 elements, under one percent.
    assert!((share - 1.0).abs() < 0.03, "{share}");
}

#[test]
fn dare_depends_only_on_its_seed() {
    for kind in [
        CombinationType::DareLinear,
        CombinationType::DareTies,
        CombinationType::DareLinearSvd,
        CombinationType::DareTiesSvd,
    ] {
        let sum = |seed: u64, bystander: bool| {
            let mut model = two_adapters();
            if bystander {
                let config = LoraConfig::new(2, 2.0).with_targets(["first"]);
                model.inject_adapter(&config, "bystander").unwrap();
            }
            dare(&mut model, kind, seed);
            all_bits(&model, "sum")
        };
        let first = sum(1, false);
        assert!(first == sum(1, true), "{kind}: the same seed");
        assert!(first != sum(2, false), "{kind}: another seed");
    }
}
