//! A build without the feature `decompositions` refuses what needs it by name, and leaves the model as it was.
//!
//! `cargo test -p peft-runtime --no-default-features --features macros --test without_decompositions`
#![cfg(all(not(feature = "decompositions"), feature = "macros"))]

use candle_core::{DType, Device, Tensor};
use candle_nn::{Linear, Module};
use peft_runtime::prelude::*;
use peft_runtime::train::LoraFa;
use peft_runtime::{Error, Result};

#[derive(Injectable)]
#[peft(target = "linear")]
struct Model {
    linear: Adapted<Linear>,
}

fn model() -> Model {
    let weight = Tensor::arange(0f32, 30., &Device::Cpu).unwrap().reshape((6, 5)).unwrap();
    Model { linear: Linear::new(weight, None).into() }
}

fn assert_names<T>(result: Result<T>, setting: &str) {
    match result {
        Err(Error::MissingFeature { setting: named, feature }) => {
            assert_eq!((named.as_str(), feature), (setting, "decompositions"));
        }
        Err(other) => panic!("{setting}: {}", other.chain()),
        Ok(_) => panic!("{setting} was not refused"),
    }
}

#[test]
fn inits_that_factorise_are_refused_and_others_work() {
    let inits = [
        (LoraInit::Pissa, "pissa"),
        (LoraInit::PissaIterations(2), "pissa_niter_2"),
        (LoraInit::Olora, "olora"),
        (LoraInit::Orthogonal, "orthogonal"),
        (LoraInit::Loftq, "loftq"),
    ];
    for (init, name) in inits {
        let mut model = model();
        let result = model.inject_adapter(&LoraConfig::new(2, 4.0).with_init(init), "default");
        assert_names(result, &format!("`init_lora_weights` = \"{name}\""));
        assert!(model.trainable_parameters().is_empty());
        let weight = &model.base_state_dict()["linear.weight"];
        let before = Tensor::arange(0f32, 30., &Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(weight.flatten_all().unwrap().to_vec1::<f32>().unwrap(), before);
    }
    for init in [LoraInit::Default, LoraInit::Gaussian, LoraInit::Random] {
        let mut model = model();
        model.inject_adapter(&LoraConfig::new(2, 4.0).with_init(init), "default").unwrap();
        model.linear.forward(&Tensor::ones((1, 5), DType::F32, &Device::Cpu).unwrap()).unwrap();
    }
}

#[test]
fn combinations_that_end_in_svd_are_refused_and_others_work() {
    let mut model = model();
    for name in ["a", "b"] {
        model.inject_adapter(&LoraConfig::new(2, 4.0), name).unwrap();
    }
    for combination in CombinationType::ALL {
        let options = CombineOptions::new(combination).with_density(0.5);
        let result = model.add_weighted_adapter(&[("a", 1.0), ("b", 1.0)], combination.name(), &options);
        if combination.name().ends_with("svd") {
            assert_names(result, &format!("`combination_type` = \"{combination}\""));
        } else {
            result.unwrap();
        }
    }
}

#[test]
fn lora_fa_and_eva_are_refused() {
    let mut model = model();
    model.inject_adapter(&LoraConfig::new(2, 4.0), "default").unwrap();
    assert_names(LoraFa::new(&model, 1e-3, 0.0), "`LoraFa`");
    let result = model.initialise_eva("default", [()], |_, ()| unreachable!());
    assert_names(result, "`initialise_eva`");
}
