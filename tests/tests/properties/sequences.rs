//! Adapters of several methods one after the other on a linear layer.

use candle_core::{DType, Tensor};
use candle_nn::{Linear, Module};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;
use peft_tests::tensors::Generator;
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::strategy::Strategy;

use crate::{assert_near, check, perturb, wide};

#[derive(Clone, Injectable)]
struct Model {
    layer: Adapted<Linear>,
}

#[derive(Clone, Debug)]
enum Method {
    Lora { rank: usize, alpha: f64, dora: bool },
    AdaLora { rank: usize, alpha: f64 },
    Ia3 { feedforward: bool },
    Loha { rank: usize, alpha: f64 },
    Lokr { rank: usize, alpha: f64, both: bool },
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
    let method = (0..6usize, 1..=4usize, 0.5..8.0f64, any::<bool>());
    let method = method.prop_map(|(method, rank, alpha, feedforward)| match method {
        0 => Method::Lora { rank, alpha, dora: false },
        1 => Method::Lora { rank, alpha, dora: true },
        2 => Method::AdaLora { rank, alpha },
        3 => Method::Loha { rank, alpha },
        4 => Method::Lokr { rank, alpha, both: feedforward },
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
            Self::Loha { rank, alpha } => Box::new(LohaConfig::new(rank, alpha).with_targets(["layer"])),
            Self::Lokr { rank, alpha, both } => {
                Box::new(LokrConfig::new(rank, alpha).with_targets(["layer"]).with_decompose_both(both))
            }
        }
    }
}

/// A linear map equal to a layer with the adapters so far.
struct LinearMap {
    weight: Tensor,
    bias: Tensor,
}

/// The tensor of an adapter, by the end of its key.
fn find(model: &Model, name: &str, end: &str) -> Tensor {
    let state = model.adapter_state_dict(name).unwrap();
    state[&format!("base_model.model.layer.{end}")].clone()
}

fn product(a: &Tensor, b: &Tensor, scaling: f64) -> Tensor {
    (b.matmul(a).unwrap() * scaling).unwrap()
}

/// One of LoKr's matrices, which is whole or a product.
fn matrix(model: &Model, name: &str, end: &str) -> Tensor {
    let state = model.adapter_state_dict(name).unwrap();
    match state.get(&format!("base_model.model.layer.{end}")) {
        Some(whole) => whole.clone(),
        None => {
            find(model, name, &format!("{end}_a")).matmul(&find(model, name, &format!("{end}_b"))).unwrap()
        }
    }
}

/// The Kronecker product, block by block.
fn kronecker(first: &Tensor, second: &Tensor) -> Tensor {
    let rows = first.to_vec2::<f64>().unwrap().into_iter().map(|row| {
        let blocks: Vec<Tensor> = row.into_iter().map(|element| (second * element).unwrap()).collect();
        Tensor::cat(&blocks, 1).unwrap()
    });
    Tensor::cat(&rows.collect::<Vec<_>>(), 0).unwrap()
}

impl LinearMap {
    /// The map with one more adapter; `own` is the layer's map.
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
                // Of the bias, only the part that adapters added is scaled.
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
            Method::Loha { rank, alpha } => {
                let factor = |index: usize| {
                    let [a, b] =
                        ["a", "b"].map(|letter| find(model, name, &format!("hada_w{index}_{letter}")));
                    a.matmul(&b).unwrap()
                };
                let delta = ((factor(1) * factor(2)).unwrap() * (alpha / rank as f64)).unwrap();
                Self { weight: (weight + delta).unwrap(), bias }
            }
            Method::Lokr { rank, alpha, .. } => {
                let product = kronecker(&matrix(model, name, "lokr_w1"), &matrix(model, name, "lokr_w2"));
                let delta = (product * (alpha / rank as f64)).unwrap();
                Self { weight: (weight + delta).unwrap(), bias }
            }
        }
    }
}

/// The model with all adapters active, an input, and the map computed by hand.
fn models(case: &Case) -> (Model, Tensor, LinearMap) {
    let mut generator = Generator::from_seed(case.seed);
    let weight = generator.uniform(&[case.outputs, case.inputs], 1.0, DType::F64).unwrap();
    let bias = generator.uniform(&[case.outputs], 1.0, DType::F64).unwrap();
    let mut model = Model { layer: Linear::new(weight.clone(), Some(bias.clone())).into() };
    let own = LinearMap { weight: weight.clone(), bias: bias.clone() };
    let mut map = LinearMap { weight, bias };
    let names: Vec<String> = (0..case.methods.len()).map(|index| format!("a{index}")).collect();
    for (method, name) in case.methods.iter().zip(&names) {
        model.inject_adapter(&*method.config(), name).unwrap();
        perturb(&mut generator, &mut model, name);
        map = map.then(method, &model, name, &own);
    }
    model.set_adapters(&names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let x = generator.uniform(&[3, case.inputs], 1.0, DType::F64).unwrap();
    (model, x, map)
}

#[test]
fn adapters_of_any_methods_act_one_after_the_other() {
    check(cases(), |case| {
        let (model, x, LinearMap { weight, bias }) = models(&case);
        let expected = wide(&x).matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        assert_near(&model.layer.forward(&x).unwrap(), &expected, DType::F64, "the output");
    });
}

#[test]
fn adapters_of_any_methods_merge_to_what_they_compute() {
    check(cases(), |case| {
        let (mut model, x, LinearMap { weight, bias }) = models(&case);
        let output = model.layer.forward(&x).unwrap();
        model.merge_adapters(&MergeOptions::active()).unwrap();
        let merged = model.merged_state_dict();
        assert_near(&merged["layer.weight"], &weight, DType::F64, "the weight");
        assert_near(&merged["layer.bias"], &bias, DType::F64, "the bias");
        assert_near(&model.layer.forward(&x).unwrap(), &output, DType::F64, "the output");
    });
}
