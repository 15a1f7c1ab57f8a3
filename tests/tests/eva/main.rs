//! EVA: A starts as the directions in which a layer's inputs vary most, and ranks go where they explain most.

mod ranks;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Linear, Module};
use peft_runtime::InjectionReport;
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::{random, same_bits};

/// Two layers that read one input, one that reads another, and one that reads what they make of them.
#[derive(Clone, Injectable)]
struct Model {
    q: Adapted<Linear>,
    k: Adapted<Linear>,
    other: Adapted<Linear>,
    head: Adapted<Linear>,
}

const WIDTH: usize = 6;
const NARROW: usize = 4;

fn linear(inputs: usize, outputs: usize) -> Adapted<Linear> {
    Linear::new(random(&[outputs, inputs]), Some(random(&[outputs]))).into()
}

fn model() -> Model {
    Model { q: linear(WIDTH, 5), k: linear(WIDTH, 5), other: linear(NARROW, 5), head: linear(5, 3) }
}

impl Model {
    fn forward(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let hidden = ((self.q.forward(a)?.tanh()? * self.k.forward(a)?)? + self.other.forward(b)?)?;
        self.head.forward(&hidden)
    }

    fn initialise(&mut self, batches: &[(Tensor, Tensor)]) -> InjectionReport {
        self.initialise_eva("default", batches, |model, (a, b)| model.forward(a, b)).unwrap()
    }
}

/// Where the mean of all rows is.
const MEAN: f32 = 3.0;

/// Rows around a mean that vary along each axis by itself, as far as `spread` says: the axes are the principal
/// directions, and the squares of the spreads say how much of the variance each explains. Rows at the mean, which
/// change nothing of that, bring their number to twelve.
fn rows<const N: usize>(spread: [f32; N]) -> Tensor {
    let mut values = Vec::new();
    for (axis, far) in spread.into_iter().enumerate() {
        for step in [far, -far] {
            let mut row = vec![MEAN; N];
            row[axis] += step;
            values.push(row);
        }
    }
    values.resize(12, vec![MEAN; N]);
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// Inputs of `q` and `k` that vary along the axes 1 and 3 above all, and of `other` along 2 and 0.
fn batch() -> (Tensor, Tensor) {
    (rows([1.0, 5.0, 0.5, 3.0, 0.1, 0.2]), rows([3.0, 1.0, 4.0, 2.0]))
}

/// Inputs of `q` and `k` that vary nearly only along axis 4, and of `other` along 2, 3, 0 and 1.
fn lopsided() -> (Tensor, Tensor) {
    (rows([0.01, 0.01, 0.01, 0.01, 9.0, 0.01]), rows([3.0, 2.0, 4.0, 3.5]))
}

fn eva(rank: usize, rho: f64) -> LoraConfig {
    let settings = EvaConfig { rho, ..EvaConfig::default() };
    LoraConfig::new(rank, 4.0).with_targets(["q", "k", "other"]).with_eva(settings)
}

fn injected(config: &LoraConfig) -> Model {
    let mut model = model();
    model.inject_adapter(config, "default").unwrap();
    model
}

fn factor<M: Injectable>(model: &M, layer: &str, letter: &str) -> Tensor {
    let key = format!("base_model.model.{layer}.lora_{letter}.weight");
    model.adapter_state_dict("default").unwrap()[&key].clone()
}

fn ranks(model: &Model) -> BTreeMap<String, usize> {
    let state = model.adapter_state_dict("default").unwrap().into_iter();
    let rank = |(key, tensor): (String, Tensor)| {
        let layer = key.strip_prefix("base_model.model.")?.strip_suffix(".lora_A.weight")?.to_owned();
        Some((layer, tensor.dims()[0]))
    };
    state.filter_map(rank).collect()
}

fn unit_rows<const N: usize>(axes: &[usize]) -> Tensor {
    let row = |axis: &usize| (0..N).map(|place| f32::from(u8::from(place == *axis))).collect::<Vec<_>>();
    Tensor::new(axes.iter().map(row).collect::<Vec<_>>(), &Device::Cpu).unwrap()
}

fn assert_near(found: &Tensor, expected: &Tensor, what: &str) {
    assert_close(found, expected, Tolerance::absolute(1e-5), what);
}

#[test]
fn a_holds_the_axes_along_which_the_inputs_vary_most_and_b_is_zero() {
    let mut model = injected(&eva(2, 1.0));
    let (a, b) = batch();
    let before = model.forward(&a, &b).unwrap();
    let report = model.initialise(&[(a.clone(), b.clone())]);
    assert_eq!(report.adapted.len(), 3);
    for layer in ["q", "k"] {
        assert_near(&factor(&model, layer, "A"), &unit_rows::<WIDTH>(&[1, 3]), layer);
        assert_near(
            &factor(&model, layer, "B"),
            &Tensor::zeros((5, 2), DType::F32, &Device::Cpu).unwrap(),
            layer,
        );
    }
    assert!(same_bits(&model.forward(&a, &b).unwrap(), &before), "nothing changes yet");
}

#[test]
fn layers_that_had_one_path_in_models_of_their_own_are_told_apart_once_these_are_parts_of_one() {
    #[derive(Injectable)]
    struct Both {
        left: Model,
        right: Model,
    }

    let config = eva(2, 1.0);
    let mut both = Both { left: injected(&config), right: injected(&config) };
    // The inputs of the right model vary along axes of their own.
    let (a, b) = batch();
    let turned = a.index_select(&Tensor::new(&[1u32, 0, 3, 2, 4, 5], &Device::Cpu).unwrap(), 1).unwrap();
    let forward = |both: &Both, (): ()| both.left.forward(&a, &b)? + both.right.forward(&turned, &b)?;
    both.initialise_eva("default", [()], forward).unwrap();
    for (layer, axes) in [("left.q", [1, 3]), ("right.q", [0, 2])] {
        assert_near(&factor(&both, layer, "A"), &unit_rows::<WIDTH>(&axes), layer);
    }
}

#[test]
fn batches_are_taken_together() {
    let (a, b) = batch();
    let mut whole = injected(&eva(2, 1.0));
    whole.initialise(&[(a.clone(), b.clone())]);
    // By themselves the first rows vary along other axes, and around another mean.
    let cut = |x: &Tensor, start: usize, length: usize| x.narrow(0, start, length).unwrap();
    let parts = [(cut(&a, 0, 3), cut(&b, 0, 3)), (cut(&a, 3, 9), cut(&b, 3, 9))];
    let mut split = injected(&eva(2, 1.0));
    split.initialise(&parts);
    for layer in ["q", "k", "other"] {
        assert_near(&factor(&whole, layer, "A"), &factor(&split, layer, "A"), layer);
    }
    // Dimensions before the last are rows as well.
    let mut deep = injected(&eva(2, 1.0));
    deep.initialise(&[(a.reshape((3, 4, WIDTH)).unwrap(), b.reshape((3, 4, NARROW)).unwrap())]);
    assert_near(&factor(&whole, "q", "A"), &factor(&deep, "q", "A"), "three dimensions");
}

#[test]
fn the_directions_are_orthonormal_uncorrelated_and_the_longest() {
    let stretch = Tensor::new(&[[4f32, 3., 2., 1., 0.5, 0.2]], &Device::Cpu).unwrap();
    let turn = random(&[WIDTH, WIDTH]);
    let a = random(&[80, WIDTH]).broadcast_mul(&stretch).unwrap().matmul(&turn).unwrap();
    let mut model = injected(&eva(3, 1.0).with_targets(["q"]));
    model.initialise(&[(a.clone(), random(&[80, NARROW]))]);
    let directions = factor(&model, "q", "A").to_dtype(DType::F64).unwrap();
    let a = a.to_dtype(DType::F64).unwrap();
    let centred = a.broadcast_sub(&a.mean_keepdim(0).unwrap()).unwrap();
    let scatter = centred.t().unwrap().matmul(&centred).unwrap();
    let gram = directions.matmul(&directions.t().unwrap()).unwrap();
    assert_near(&gram, &Tensor::eye(3, DType::F64, &Device::Cpu).unwrap(), "A·Aᵀ");
    let seen = directions.matmul(&scatter).unwrap().matmul(&directions.t().unwrap()).unwrap();
    let seen = seen.to_vec2::<f64>().unwrap();
    assert!(seen[0][0] >= seen[1][1] && seen[1][1] >= seen[2][2]);
    assert!((0..3).all(|i| (0..3).all(|j| i == j || seen[i][j].abs() < 1e-4 * seen[0][0])));
    // The longest one, by multiplying with the scatter again and again.
    let mut longest = Tensor::ones((WIDTH, 1), DType::F64, &Device::Cpu).unwrap();
    for _ in 0..3000 {
        longest = scatter.matmul(&longest).unwrap();
        let length = longest.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
        longest = (longest / length).unwrap();
    }
    let cosine = directions.narrow(0, 0, 1).unwrap().matmul(&longest).unwrap();
    assert!((cosine.sum_all().unwrap().to_scalar::<f64>().unwrap().abs() - 1.0).abs() < 1e-4);
}

#[test]
fn whitened_directions_are_divided_by_the_roots_of_the_singular_values() {
    let settings = EvaConfig { rho: 1.0, whiten: true, ..EvaConfig::default() };
    let mut model = injected(&eva(2, 1.0).with_eva(settings));
    model.initialise(&[batch()]);
    // Two rows lie 5 from the mean along the first axis: the singular value is √2 · 5.
    let roots = [5f32, 3.].map(|spread| (2f32.sqrt() * spread).sqrt());
    let roots = Tensor::new(&roots, &Device::Cpu).unwrap().reshape((2, 1)).unwrap();
    let expected = unit_rows::<WIDTH>(&[1, 3]).broadcast_div(&roots).unwrap();
    assert_near(&factor(&model, "q", "A"), &expected, "A of `q`");
}
