//! Layers of every kind and size with adapters, and what they compute, worked out by hand.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Embedding, Linear, Module};
use peft_runtime::nn::TransposedLinear;
use peft_runtime::prelude::*;
use peft_tests::float_types::FLOAT_TYPES;
use peft_tests::tensors::Generator;
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::sample::select;
use proptest::strategy::Strategy;

use crate::{perturb, wide};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Linear,
    Transposed,
    Embedding,
    Conv1d,
    Conv2d,
}

#[derive(Clone, Injectable)]
pub struct Model {
    pub layer: Layer,
}

#[derive(Clone, Injectable)]
pub enum Layer {
    Linear(Adapted<Linear>),
    Transposed(Adapted<TransposedLinear>),
    Embedding(Adapted<Embedding>),
    Conv1d(Adapted<Conv1d>),
    Conv2d(Adapted<Conv2d>),
}

/// A layer, its input and its adapters.
#[derive(Clone, Debug)]
pub struct Case {
    pub kind: Kind,
    pub dtype: DType,
    pub inputs: usize,
    pub outputs: usize,
    pub bias: bool,
    pub batch: usize,
    pub seed: u64,
    pub adapters: Vec<Lora>,
}

#[derive(Clone, Debug)]
pub struct Lora {
    pub rank: usize,
    pub alpha: f64,
    pub rslora: bool,
    pub bias: bool,
    /// Its weight in a sum.
    pub weight: f64,
}

pub fn loras() -> impl Strategy<Value = Vec<Lora>> {
    let lora = (1..=4usize, -8.0..8.0f64, any::<bool>(), any::<bool>(), -2.0..2.0f64);
    let lora =
        lora.prop_map(|(rank, alpha, rslora, bias, weight)| Lora { rank, alpha, rslora, bias, weight });
    vec(lora, 1..4)
}

pub fn cases() -> impl Strategy<Value = Case> {
    use Kind::{Conv1d, Conv2d, Embedding, Linear, Transposed};
    let kinds = select(vec![Linear, Transposed, Embedding, Conv1d, Conv2d]);
    let dtypes = select(FLOAT_TYPES.map(|float| float.dtype).to_vec());
    let sizes = (2..9usize, 2..9usize, 1..5usize);
    (kinds, dtypes, sizes, any::<bool>(), any::<u64>(), loras()).prop_map(
        |(kind, dtype, (inputs, outputs, batch), bias, seed, adapters)| {
            let bias = bias && kind != Embedding;
            Case { kind, dtype, inputs, outputs, bias, batch, seed, adapters }
        },
    )
}

impl Case {
    pub fn name(index: usize) -> String {
        format!("a{index}")
    }

    pub fn names(&self) -> Vec<String> {
        (0..self.adapters.len()).map(Self::name).collect()
    }

    pub fn base(&self, generator: &mut Generator) -> Model {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let mut tensor = |shape: &[usize]| generator.uniform(shape, 1.0, self.dtype).unwrap();
        let bias = self.bias.then(|| tensor(&[outputs]));
        let conv1d = Conv1dConfig { padding: 1, ..Conv1dConfig::default() };
        let conv2d = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
        let layer = match self.kind {
            Kind::Linear => Layer::Linear(Linear::new(tensor(&[outputs, inputs]), bias).into()),
            Kind::Transposed => {
                Layer::Transposed(TransposedLinear::new(tensor(&[inputs, outputs]), bias).into())
            }
            Kind::Embedding => Layer::Embedding(Embedding::new(tensor(&[inputs, outputs]), outputs).into()),
            Kind::Conv1d => Layer::Conv1d(Conv1d::new(tensor(&[outputs, inputs, 3]), bias, conv1d).into()),
            Kind::Conv2d => Layer::Conv2d(Conv2d::new(tensor(&[outputs, inputs, 3, 2]), bias, conv2d).into()),
        };
        Model { layer }
    }

    pub fn input(&self, generator: &mut Generator) -> Tensor {
        let shape: &[usize] = match self.kind {
            Kind::Linear | Kind::Transposed => &[self.batch, 3, self.inputs],
            Kind::Conv1d => &[self.batch, self.inputs, 6],
            Kind::Conv2d => &[self.batch, self.inputs, 5, 4],
            Kind::Embedding => {
                let ids = (0..self.batch * 4).map(|place| ((place * 7 + 3) % self.inputs) as u32);
                return Tensor::from_vec(ids.collect(), (self.batch, 4), &Device::Cpu).unwrap();
            }
        };
        generator.uniform(shape, 1.0, self.dtype).unwrap()
    }

    pub fn config(&self, lora: &Lora) -> LoraConfig {
        LoraConfig::new(lora.rank, lora.alpha)
            .with_targets(["layer"])
            .with_rslora(lora.rslora)
            .with_lora_bias(lora.bias && self.bias)
    }

    /// The base, the base with all adapters, of which all are active, and an input.
    pub fn models(&self) -> (Model, Model, Tensor) {
        let mut generator = Generator::from_seed(self.seed);
        let base = self.base(&mut generator);
        let mut model = base.clone();
        for (lora, name) in self.adapters.iter().zip(self.names()) {
            model.inject_adapter(&self.config(lora), &name).unwrap();
            perturb(&mut generator, &mut model, &name);
        }
        activate(&mut model, &self.names());
        let x = self.input(&mut generator);
        (base, model, x)
    }

    /// The update of one adapter, `scaling·B·A`, in the shape of the stored weight; and that of the bias.
    pub fn update(&self, model: &Model, name: &str, scaling: f64) -> (Tensor, Option<Tensor>) {
        let state: BTreeMap<String, Tensor> = model.adapter_state_dict(name).unwrap();
        let find =
            |end: &str| state.iter().find(|(key, _)| key.ends_with(end)).map(|(_, tensor)| wide(tensor));
        let factor = |letter: &str| {
            let (layer, embedding) = (format!("lora_{letter}.weight"), format!("lora_embedding_{letter}"));
            find(&layer).or_else(|| find(&embedding)).unwrap()
        };
        let (a, b) = (factor("A"), factor("B"));
        let rank = a.dims()[0];
        let product =
            b.reshape((self.outputs, rank)).unwrap().matmul(&a.reshape((rank, ())).unwrap()).unwrap();
        let product = (product * scaling).unwrap();
        let weight = &model.base_state_dict()["layer.weight"];
        let stored = match self.kind {
            Kind::Transposed | Kind::Embedding => product.t().unwrap().contiguous().unwrap(),
            _ => product.reshape(weight.dims()).unwrap(),
        };
        (stored, find("lora_B.bias").map(|bias| (bias * scaling).unwrap()))
    }

    pub fn scaling(lora: &Lora) -> f64 {
        let rank = lora.rank as f64;
        lora.alpha / if lora.rslora { rank.sqrt() } else { rank }
    }

    /// What the layer computes with the sum of the updates of some adapters in its weight, in double precision.
    pub fn by_hand(&self, model: &Model, active: &[usize], x: &Tensor) -> Tensor {
        let base = model.base_state_dict();
        let mut weight = wide(&base["layer.weight"]);
        let mut bias = base.get("layer.bias").map(wide);
        for index in active {
            let (update, of_bias) =
                self.update(model, &Self::name(*index), Self::scaling(&self.adapters[*index]));
            weight = (weight + update).unwrap();
            if let (Some(own), Some(update)) = (&bias, of_bias) {
                bias = Some((own + update).unwrap());
            }
        }
        let output = match self.kind {
            Kind::Linear => wide(x).broadcast_matmul(&weight.t().unwrap()),
            Kind::Transposed => wide(x).broadcast_matmul(&weight),
            Kind::Embedding => {
                let rows = weight.index_select(&x.flatten_all().unwrap(), 0).unwrap();
                rows.reshape((self.batch, 4, self.outputs))
            }
            Kind::Conv1d => wide(x).conv1d(&weight, 1, 1, 1, 1),
            Kind::Conv2d => wide(x).conv2d(&weight, 1, 1, 1, 1),
        };
        let output = output.unwrap();
        let Some(bias) = bias else { return output };
        let shape: &[usize] = match self.kind {
            Kind::Conv1d => &[1, self.outputs, 1],
            Kind::Conv2d => &[1, self.outputs, 1, 1],
            _ => &[self.outputs],
        };
        output.broadcast_add(&bias.reshape(shape).unwrap()).unwrap()
    }
}

pub fn activate(model: &mut Model, names: &[String]) {
    model.set_adapters(&names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
}

pub fn forward(model: &Model, x: &Tensor) -> Tensor {
    let output = match &model.layer {
        Layer::Linear(layer) => layer.forward(x),
        Layer::Transposed(layer) => layer.forward(x),
        Layer::Embedding(layer) => layer.forward(x),
        Layer::Conv1d(layer) => layer.forward(x),
        Layer::Conv2d(layer) => layer.forward(x),
    };
    output.unwrap()
}
