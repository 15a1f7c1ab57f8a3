//! Convolutions with a dilation, which PEFT's LoRA merges and cannot run.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Module};
use peft_runtime::ModelWeights;
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close};

use crate::fixture::{Case, tensors};

const TOLERANCE: Tolerance = Tolerance::absolute(1e-5);

#[derive(Clone, Injectable)]
struct Dilated {
    plane: Adapted<Conv2d>,
    line: Adapted<Conv1d>,
}

fn model(base: &BTreeMap<String, Tensor>) -> Dilated {
    let plane = Conv2dConfig { stride: 2, padding: 2, dilation: 2, ..Conv2dConfig::default() };
    let line = Conv1dConfig { padding: 2, dilation: 2, ..Conv1dConfig::default() };
    let tensor = |name: &str| base[name].clone();
    Dilated {
        plane: Conv2d::new(tensor("plane.weight"), Some(tensor("plane.bias")), plane).into(),
        line: Conv1d::new(tensor("line.weight"), Some(tensor("line.bias")), line).into(),
    }
}

#[test]
fn a_dilated_convolution_computes_what_pefts_merged_one_does() {
    for name in ["dilated_lora", "dilated_dora"] {
        let case = Case::read(name);
        let mut model = model(&tensors(&format!("{name}/base/")));
        model.load_adapter(case.adapter.path(), "default").unwrap();
        let check = |model: &Dilated| {
            let plane = model.plane.forward(&case.tensor("x/plane")).unwrap();
            assert_close(&plane, &case.tensor("y/plane"), TOLERANCE, name);
            let line = model.line.forward(&case.tensor("x/line")).unwrap();
            assert_close(&line, &case.tensor("y/line"), TOLERANCE, name);
        };
        check(&model);
        model.merge_adapters(&MergeOptions::active()).unwrap();
        check(&model);
        let (merged, expected) = (model.merged_state_dict(), tensors(&format!("{name}/merged/")));
        let folder = case.written();
        let written = ModelWeights::open(folder.path()).unwrap();
        for (key, expected) in expected {
            assert_close(&merged[&key], &expected, TOLERANCE, &key);
            assert_close(&written.tensor(&key, &Device::Cpu).unwrap(), &expected, TOLERANCE, &key);
        }
    }
}

#[test]
fn an_adapter_of_a_dilated_convolution_trains() {
    let mut model = model(&tensors("dilated_lora/base/"));
    model
        .inject_adapter(
            &LoraConfig::new(2, 4.0).with_init(LoraInit::Random).with_targets(["plane", "line"]),
            "default",
        )
        .unwrap();
    let x = tensors("dilated_lora/x/");
    let plane = model.plane.forward(&x["plane"]).unwrap().sqr().unwrap().sum_all().unwrap();
    let line = model.line.forward(&x["line"]).unwrap().sqr().unwrap().sum_all().unwrap();
    let gradients = (plane + line).unwrap().backward().unwrap();
    for (name, var) in model.trainable_parameters() {
        assert!(gradients.get(&var).is_some(), "{name}");
    }
}
