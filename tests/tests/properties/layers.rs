//! LoRA adapters on layers of every kind and size.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Embedding, Linear, Module};
use peft_runtime::nn::TransposedLinear;
use peft_runtime::prelude::*;
use peft_tests::float_types::FLOAT_TYPES;
use peft_tests::tensors::{Generator, bits};
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::sample::select;
use proptest::strategy::Strategy;

use crate::{assert_near, check, perturb, wide};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Linear,
    Transposed,
    Embedding,
    Conv1d,
    Conv2d,
}

#[derive(Clone, Injectable)]
struct Model {
    layer: Layer,
}

#[derive(Clone, Injectable)]
enum Layer {
    Linear(Adapted<Linear>),
    Transposed(Adapted<TransposedLinear>),
    Embedding(Adapted<Embedding>),
    Conv1d(Adapted<Conv1d>),
    Conv2d(Adapted<Conv2d>),
}

/// A layer, its input and its adapters.
#[derive(Clone, Debug)]
struct Case {
    kind: Kind,
    dtype: DType,
    inputs: usize,
    outputs: usize,
    bias: bool,
    batch: usize,
    seed: u64,
    adapters: Vec<Lora>,
}

#[derive(Clone, Debug)]
struct Lora {
    rank: usize,
    alpha: f64,
    rslora: bool,
    bias: bool,
    /// Its weight in a sum.
    weight: f64,
}

fn loras() -> impl Strategy<Value = Vec<Lora>> {
    let lora = (1..=4usize, -8.0..8.0f64, any::<bool>(), any::<bool>(), -2.0..2.0f64);
    let lora =
        lora.prop_map(|(rank, alpha, rslora, bias, weight)| Lora { rank, alpha, rslora, bias, weight });
    vec(lora, 1..4)
}

fn cases() -> impl Strategy<Value = Case> {
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
    fn name(index: usize) -> String {
        format!("a{index}")
    }

    fn names(&self) -> Vec<String> {
        (0..self.adapters.len()).map(Self::name).collect()
    }

    fn base(&self, generator: &mut Generator) -> Model {
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

    fn input(&self, generator: &mut Generator) -> Tensor {
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

    fn config(&self, lora: &Lora) -> LoraConfig {
        LoraConfig::new(lora.rank, lora.alpha)
            .with_targets(["layer"])
            .with_rslora(lora.rslora)
            .with_lora_bias(lora.bias && self.bias)
    }

    /// The base, the base with all adapters, of which all are active, and an input.
    fn models(&self) -> (Model, Model, Tensor) {
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
    fn update(&self, model: &Model, name: &str, scaling: f64) -> (Tensor, Option<Tensor>) {
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

    fn scaling(lora: &Lora) -> f64 {
        let rank = lora.rank as f64;
        lora.alpha / if lora.rslora { rank.sqrt() } else { rank }
    }

    /// What the layer computes with the sum of the updates of some adapters in its weight, in double precision.
    fn by_hand(&self, model: &Model, active: &[usize], x: &Tensor) -> Tensor {
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

fn activate(model: &mut Model, names: &[String]) {
    model.set_adapters(&names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
}

fn forward(model: &Model, x: &Tensor) -> Tensor {
    let output = match &model.layer {
        Layer::Linear(layer) => layer.forward(x),
        Layer::Transposed(layer) => layer.forward(x),
        Layer::Embedding(layer) => layer.forward(x),
        Layer::Conv1d(layer) => layer.forward(x),
        Layer::Conv2d(layer) => layer.forward(x),
    };
    output.unwrap()
}

#[test]
fn the_output_with_several_adapters_is_that_of_the_dense_sum() {
    check(cases(), |case| {
        let (_, model, x) = case.models();
        let all: Vec<usize> = (0..case.adapters.len()).collect();
        let output = forward(&model, &x);
        assert_eq!(output.dtype(), case.dtype);
        assert_near(&output, &case.by_hand(&model, &all, &x), case.dtype, "the output");
    });
}

#[test]
fn merging_is_the_forward_pass_and_unmerging_restores_the_bits() {
    check(cases(), |case| {
        let (base, mut model, x) = case.models();
        let output = forward(&model, &x);
        model.merge_adapters(&MergeOptions::active().check_finite(true)).unwrap();
        assert_near(&forward(&model, &x), &output, case.dtype, "the output when merged");
        model.unmerge_adapters().unwrap();
        assert_eq!(bits(&forward(&model, &x)).unwrap(), bits(&output).unwrap());
        for (key, tensor) in model.merged_state_dict() {
            assert_eq!(bits(&tensor).unwrap(), bits(&base.base_state_dict()[&key]).unwrap(), "{key}");
        }
    });
}

#[test]
fn saving_and_loading_keeps_the_bits() {
    check(cases(), |case| {
        let (base, model, x) = case.models();
        let folder = tempfile::tempdir().unwrap();
        let mut other = base;
        for name in case.names() {
            model.save_pretrained(folder.path(), &name).unwrap();
            other.load_adapter(folder.path(), &name).unwrap();
        }
        activate(&mut other, &case.names());
        assert_eq!(bits(&forward(&other, &x)).unwrap(), bits(&forward(&model, &x)).unwrap());
    });
}

#[test]
fn exact_combinations_are_the_weighted_sums_of_the_updates() {
    // Rank stabilisation of the first part is refused: its scaling would be taken over.
    let plain = cases().prop_map(|mut case| {
        case.adapters.iter_mut().for_each(|lora| lora.rslora = false);
        case
    });
    check(plain, |case| {
        let (_, mut model, _) = case.models();
        let names = case.names();
        let parts: Vec<(&str, f64)> =
            names.iter().map(String::as_str).zip(case.adapters.iter().map(|lora| lora.weight)).collect();
        let update = |model: &Model, name: &str, scaling| case.update(model, name, scaling).0;
        let terms = case.adapters.iter().zip(&names);
        let terms = terms.map(|(lora, name)| update(&model, name, lora.weight * Case::scaling(lora)));
        let expected = terms.reduce(|sum, term| (sum + term).unwrap()).unwrap();
        let matrix = [case.outputs, expected.elem_count() / case.outputs];
        let full = CombineOptions::new(CombinationType::Svd).with_svd_rank(matrix[0].min(matrix[1]));
        for options in [CombineOptions::new(CombinationType::Cat), full] {
            model.add_weighted_adapter(&parts, "sum", &options).unwrap();
            let sum = update(&model, "sum", 1.0);
            // The factors are in f32, but for layers in f64.
            let dtype = if case.dtype == DType::F64 { DType::F64 } else { DType::F32 };
            assert_near(&sum, &expected, dtype, &format!("{options:?}"));
            model.delete_adapter("sum").unwrap();
        }
    });
}

#[test]
fn each_row_of_a_mixed_batch_is_that_of_a_batch_with_one_adapter() {
    check((cases(), vec(0..5usize, 4)), |(case, choice)| {
        let (_, mut model, x) = case.models();
        // 0 is the base, and so is what is over the number of adapters.
        let picked = |row: usize| choice[row].checked_sub(1).filter(|index| *index < case.adapters.len());
        let rows: Vec<String> = (0..case.batch)
            .map(|row| picked(row).map_or_else(|| "__base__".to_owned(), Case::name))
            .collect();
        let mixed = model.with_adapter_rows(&rows, |model| forward(model, &x)).unwrap();
        for row in 0..case.batch {
            let active: Vec<usize> = picked(row).into_iter().collect();
            activate(&mut model, &active.iter().map(|index| Case::name(*index)).collect::<Vec<_>>());
            let alone = forward(&model, &x.narrow(0, row, 1).unwrap());
            let what = format!("row {row} of {rows:?}");
            assert_near(&mixed.narrow(0, row, 1).unwrap(), &alone, case.dtype, &what);
            let by_hand = case.by_hand(&model, &active, &x).narrow(0, row, 1).unwrap();
            assert_near(&alone, &by_hand, case.dtype, &what);
        }
    });
}
