//! Adapters of several methods one after the other on a linear layer.

use candle_core::{DType, Tensor};
use candle_nn::{Linear, Module};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::strategy::Strategy;

use crate::{Numbers, check, near, wide};

#[derive(Clone, Injectable)]
struct Model {
    layer: Adapted<Linear>,
}

#[derive(Clone, Debug)]
enum Method {
    Lora { rank: usize, alpha: f64, dora: bool },
    AdaLora { rank: usize, alpha: f64 },
    Ia3 { feedforward: bool },
}

/// A layer, its input and its adapters in the order in which they act.
#[derive(Clone, Debug)]
struct Case {
    inputs: usize,
    outputs: usize,
    seed: u64,
    methods: Vec<Method>,
}

fn cases() -> impl Strategy<Value = Case> {
    let method = (0..4usize, 1..=4usize, 0.5..8.0f64, any::<bool>());
    let method = method.prop_map(|(method, rank, alpha, feedforward)| match method {
        0 => Method::Lora { rank, alpha, dora: false },
        1 => Method::Lora { rank, alpha, dora: true },
        2 => Method::AdaLora { rank, alpha },
        _ => Method::Ia3 { feedforward },
    });
    (2..9usize, 2..9usize, any::<u64>(), vec(method, 1..5))
        .prop_map(|(inputs, outputs, seed, methods)| Case { inputs, outputs, seed, methods })
}

impl Method {
    fn config(&self) -> Box<dyn AdapterMethod> {
        match *self {
            Self::Lora { rank, alpha, dora } => {
                Box::new(LoraConfig::new(rank, alpha).with_targets(["layer"]).with_dora(dora))
            }
            Self::AdaLora { rank, alpha } => {
                Box::new(AdaLoraConfig::new(rank, rank, 10).with_alpha(alpha).with_targets(["layer"]))
            }
            Self::Ia3 { feedforward } => {
                let named = if feedforward { vec!["layer"] } else { Vec::new() };
                Box::new(Ia3Config::new().with_targets(["layer"]).with_feedforward(named))
            }
        }
    }
}

/// A linear map that computes what a layer and the adapters so far compute.
struct Running {
    weight: Tensor,
    bias: Tensor,
}

/// The tensor of an adapter under the end of its key.
fn find(model: &Model, name: &str, end: &str) -> Tensor {
    let state = model.adapter_state_dict(name).unwrap();
    state[&format!("base_model.model.layer.{end}")].clone()
}

fn product(a: &Tensor, b: &Tensor, scaling: f64) -> Tensor {
    (b.matmul(a).unwrap() * scaling).unwrap()
}

impl Running {
    /// The map with one adapter more; `own` is the layer's.
    fn then(self, method: &Method, model: &Model, name: &str, own: &Self) -> Self {
        let Self { weight, bias } = self;
        match *method {
            Method::Lora { rank, alpha, dora } => {
                let (a, b) = (find(model, name, "lora_A.weight"), find(model, name, "lora_B.weight"));
                let delta = product(&a, &b, alpha / rank as f64);
                if !dora {
                    return Self { weight: (weight + delta).unwrap(), bias };
                }
                let lengths = (&own.weight + &delta).unwrap().sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
                let factor = (find(model, name, "lora_magnitude_vector") / lengths).unwrap();
                let sum = (weight + delta).unwrap();
                // Of the bias only what adapters have made of it is scaled.
                let change = ((bias - &own.bias).unwrap() * &factor).unwrap();
                let weight = sum.broadcast_mul(&factor.unsqueeze(1).unwrap()).unwrap();
                Self { weight, bias: (change + &own.bias).unwrap() }
            }
            Method::AdaLora { rank, alpha } => {
                let a = find(model, name, "lora_A").broadcast_mul(&find(model, name, "lora_E")).unwrap();
                let delta = product(&a, &find(model, name, "lora_B"), alpha / (rank as f64 + 1e-5));
                Self { weight: (weight + delta).unwrap(), bias }
            }
            Method::Ia3 { feedforward } => {
                let vector = find(model, name, "ia3_l");
                let weight = weight.broadcast_mul(&vector).unwrap();
                let flat = vector.flatten_all().unwrap();
                Self { weight, bias: if feedforward { bias } else { (bias * flat).unwrap() } }
            }
        }
    }
}

/// The model with all adapters active, an input, and the map by hand.
fn models(case: &Case) -> (Model, Tensor, Running) {
    let mut numbers = Numbers(case.seed);
    let weight = numbers.tensor(&[case.outputs, case.inputs], DType::F64);
    let bias = numbers.tensor(&[case.outputs], DType::F64);
    let mut model = Model { layer: Linear::new(weight.clone(), Some(bias.clone())).into() };
    let own = Running { weight: weight.clone(), bias: bias.clone() };
    let mut running = Running { weight, bias };
    let names: Vec<String> = (0..case.methods.len()).map(|index| format!("a{index}")).collect();
    for (method, name) in case.methods.iter().zip(&names) {
        model.inject_adapter(&*method.config(), name).unwrap();
        numbers.stir(&mut model, name);
        running = running.then(method, &model, name, &own);
    }
    model.set_adapters(&names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let x = numbers.tensor(&[3, case.inputs], DType::F64);
    (model, x, running)
}

#[test]
fn adapters_of_any_methods_act_one_after_the_other() {
    check(cases(), |case| {
        let (model, x, Running { weight, bias }) = models(&case);
        let expected = wide(&x).matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        assert!(near(&model.layer.forward(&x).unwrap(), &expected, DType::F64));
    });
}

#[test]
fn adapters_of_any_methods_merge_to_what_they_compute() {
    check(cases(), |case| {
        let (mut model, x, Running { weight, bias }) = models(&case);
        let output = model.layer.forward(&x).unwrap();
        model.merge_adapters(&MergeOptions::active()).unwrap();
        let merged = model.merged_state_dict();
        assert!(near(&merged["layer.weight"], &weight, DType::F64), "the weight");
        assert!(near(&merged["layer.bias"], &bias, DType::F64), "the bias");
        assert!(near(&model.layer.forward(&x).unwrap(), &output, DType::F64), "the output");
    });
}
