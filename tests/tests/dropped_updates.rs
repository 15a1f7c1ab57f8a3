//! What dropout does to LoHa and LoKr in training mode: it drops rows of the update, or the whole update of a layer.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Linear, Module};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::{Generator, largest, randomise, same_bits};

const IN: usize = 6;
const OUT: usize = 16;
const LAYERS: [&str; 3] = ["linear", "conv1d", "conv2d"];

/// Layers whose weights are zero, so that only adapters show.
#[derive(Clone, Injectable)]
struct Model {
    linear: Adapted<Linear>,
    conv1d: Adapted<Conv1d>,
    conv2d: Adapted<Conv2d>,
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

impl Model {
    /// A model in training mode whose adapter acts.
    fn new(config: &dyn AdapterMethod, outputs: usize) -> Self {
        let conv1d = Conv1dConfig { padding: 1, ..Conv1dConfig::default() };
        let conv2d = Conv2dConfig { stride: 2, ..Conv2dConfig::default() };
        let mut model = Self {
            linear: Linear::new(zeros(&[outputs, IN]), None).into(),
            conv1d: Conv1d::new(zeros(&[outputs, IN, 3]), None, conv1d).into(),
            conv2d: Conv2d::new(zeros(&[outputs, IN, 3, 3]), None, conv2d).into(),
        };
        model.inject_adapter(config, "a").unwrap();
        randomise(&mut model, "a", 0.5).unwrap();
        model.train();
        model
    }

    /// The output of each layer for the same input in every call, `[outputs, …]`.
    fn outputs(&self) -> [Tensor; 3] {
        let mut generator = Generator::from_seed(1);
        let mut input = |shape: &[usize]| generator.uniform(shape, 1.0, DType::F32).unwrap();
        let outputs = [
            self.linear.forward(&input(&[20, IN])),
            self.conv1d.forward(&input(&[2, IN, 7])),
            self.conv2d.forward(&input(&[2, IN, 7, 5])),
        ];
        outputs.map(|output| output.unwrap().transpose(0, 1).unwrap().contiguous().unwrap())
    }

    /// The same with nothing dropped.
    fn whole(&self) -> [Tensor; 3] {
        let mut model = self.clone();
        model.eval();
        model.outputs()
    }

    /// The factor of each row of each layer's update in one call.
    fn draw(&self, whole: &[Tensor; 3]) -> Vec<Vec<f32>> {
        self.outputs().iter().zip(whole).map(|(dropped, whole)| factors(dropped, whole)).collect()
    }
}

/// The factor by which each row of `dropped` differs from that of `whole`; a row has one factor or the test fails.
fn factors(dropped: &Tensor, whole: &Tensor) -> Vec<f32> {
    let (dropped, whole) = (dropped.flatten_from(1).unwrap(), whole.flatten_from(1).unwrap());
    let inner = (&dropped * &whole).unwrap().sum_keepdim(1).unwrap();
    let factors = (inner / whole.sqr().unwrap().sum_keepdim(1).unwrap()).unwrap();
    let scaled = whole.broadcast_mul(&factors).unwrap();
    assert_close(&dropped, &scaled, Tolerance::of_largest(1e-5, &whole), "a row");
    factors.flatten_all().unwrap().to_vec1().unwrap()
}

fn is_near(a: f32, b: f32) -> bool {
    (a - b).abs() < 1e-4 * b.abs().max(1.0)
}

fn loha() -> LohaConfig {
    LohaConfig::new(2, 8.0).with_targets(LAYERS)
}

fn lokr() -> LokrConfig {
    LokrConfig::new(1, 4.0).with_targets(LAYERS)
}

/// Configs that drop rows with this probability, and whether the remaining rows are divided by their share.
fn dropping_rows(probability: f64) -> Vec<(&'static str, Box<dyn AdapterMethod>, bool)> {
    let (loha, lokr) = (loha().with_rank_dropout(probability), lokr().with_rank_dropout(probability));
    vec![
        ("loha", Box::new(loha.clone()), true),
        ("loha with cores", Box::new(loha.with_effective_conv2d(true)), true),
        ("lokr", Box::new(lokr.clone()), false),
        ("lokr, scaled", Box::new(lokr.clone().with_rank_dropout_scale(true)), true),
        (
            "lokr with a core, scaled",
            Box::new(lokr.with_effective_conv2d(true).with_rank_dropout_scale(true)),
            true,
        ),
    ]
}

#[test]
fn whole_rows_are_dropped_and_the_rest_divided_by_their_share_where_the_method_says_so() {
    const CALLS: usize = 40;
    for (what, config, rescales) in dropping_rows(0.25) {
        let model = Model::new(&*config, OUT);
        let whole = model.whole();
        let mut all = 0;
        for factors in (0..CALLS).flat_map(|_| model.draw(&whole)) {
            let kept = factors.iter().filter(|factor| **factor != 0.0).count();
            let expected = if rescales { OUT as f32 / kept as f32 } else { 1.0 };
            assert!(
                factors.iter().all(|factor| *factor == 0.0 || is_near(*factor, expected)),
                "{what}: {factors:?}"
            );
            all += kept;
        }
        // 1,920 draws: the standard error is one percent.
        let share = all as f64 / (CALLS * LAYERS.len() * OUT) as f64;
        assert!((share - 0.75).abs() < 0.04, "{what}: {share}");
    }
}

#[test]
fn module_dropout_drops_the_adapter_of_a_layer_and_rescales_nothing() {
    const CALLS: usize = 200;
    let configs: [(&str, Box<dyn AdapterMethod>); 2] = [
        ("loha", Box::new(loha().with_module_dropout(0.25))),
        ("lokr", Box::new(lokr().with_module_dropout(0.25))),
    ];
    for (what, config) in configs {
        let model = Model::new(&*config, OUT);
        let whole = model.whole();
        let (mut acting, mut apart) = (0, false);
        for _ in 0..CALLS {
            let layers = model.draw(&whole);
            for factors in &layers {
                let first = factors[0];
                assert!(first == 0.0 || is_near(first, 1.0), "{what}: {first}");
                assert!(factors.iter().all(|factor| *factor == first || is_near(*factor, first)), "{what}");
                acting += usize::from(first != 0.0);
            }
            apart |= layers.iter().any(|factors| (factors[0] == 0.0) != (layers[0][0] == 0.0));
        }
        // 600 draws: the standard error is 1.8%.
        let share = acting as f64 / (CALLS * LAYERS.len()) as f64;
        assert!((share - 0.75).abs() < 0.07, "{what}: {share}");
        assert!(apart, "{what}: each layer draws for itself");
    }
}

#[test]
fn nothing_is_dropped_in_evaluation_mode_or_in_a_merge() {
    type Config = Box<dyn AdapterMethod>;
    let (dropping_loha, dropping_lokr) = (loha().with_rank_dropout(0.5), lokr().with_rank_dropout(0.5));
    let configs: [(&str, Config, Config); 2] = [
        ("loha", Box::new(dropping_loha.with_module_dropout(0.5)), Box::new(loha())),
        ("lokr", Box::new(dropping_lokr.with_module_dropout(0.5)), Box::new(lokr())),
    ];
    for (what, dropping, plain) in configs {
        let mut model = Model::new(&*dropping, OUT);
        let mut other = Model::new(&*plain, OUT);
        other.load_adapter_state_dict(&model.adapter_state_dict("a").unwrap(), "a").unwrap();
        for (ours, theirs) in model.whole().iter().zip(&other.outputs()) {
            assert!(same_bits(ours, theirs), "{what}");
        }
        for model in [&mut model, &mut other] {
            model.merge_adapters(&MergeOptions::active()).unwrap();
        }
        let (ours, theirs) = (model.merged_state_dict(), other.merged_state_dict());
        assert!(ours.iter().all(|(key, tensor)| same_bits(tensor, &theirs[key])), "{what}");
    }
}

#[test]
fn the_same_seed_drops_the_same_and_every_call_draws_anew() {
    let configs = |seed: u64| -> [(&str, Box<dyn AdapterMethod>); 2] {
        let loha = loha().with_rank_dropout(0.5).with_module_dropout(0.1).with_seed(seed);
        let lokr = lokr().with_rank_dropout(0.5).with_module_dropout(0.1).with_seed(seed);
        [("loha", Box::new(loha)), ("lokr", Box::new(lokr))]
    };
    for ((what, seven), (_, eight)) in configs(7).into_iter().zip(configs(8)) {
        let calls = |config: &dyn AdapterMethod| {
            let model = Model::new(config, OUT);
            let whole = model.whole();
            let draws: Vec<_> = (0..3).map(|_| model.draw(&whole)).collect();
            let dropped =
                |factors: &Vec<f32>| factors.iter().map(|factor| *factor == 0.0).collect::<Vec<_>>();
            draws.iter().map(|draw| draw.iter().map(dropped).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        let first = calls(&*seven);
        assert_eq!(first, calls(&*seven), "{what}: the same seed");
        assert_ne!(first, calls(&*eight), "{what}: a different seed");
        assert!(first[0] != first[1] && first[1] != first[2], "{what}: each call");
        assert_ne!(first[0][0], first[0][1], "{what}: each layer");
    }
}

#[test]
fn where_all_rows_are_dropped_the_update_is_zero_and_gradients_are_finite() {
    // Both rows of a layer are dropped in more than half of the calls.
    for (what, config, _) in dropping_rows(0.75) {
        let model = Model::new(&*config, 2);
        let parameters = model.trainable_parameters();
        let mut empty = 0;
        for output in (0..10).flat_map(|_| model.outputs()) {
            let grads = output.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let gradient = |var: &Var| grads.get(var).map(|grad| largest(grad).unwrap());
            let gradients: Vec<f64> = parameters.iter().filter_map(|(_, var)| gradient(var)).collect();
            let sum = output.sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(sum.is_finite(), "{what}");
            assert!(!gradients.is_empty() && gradients.iter().all(|largest| largest.is_finite()), "{what}");
            if largest(&output).unwrap() == 0.0 {
                assert!(gradients.iter().all(|largest| *largest == 0.0), "{what}");
                empty += 1;
            }
        }
        assert!((5..30).contains(&empty), "{what}: {empty}");
    }
}
