//! Frozen weights cost nothing: no gradient has their shape, even where candle's own layers would compute one.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Conv2d, Conv2dConfig, Linear, Module};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::nn::TransposedLinear;
use peft_runtime::prelude::*;
use peft_tests::tensors::random;

/// Sizes that no other tensor of the models has.
const IN: usize = 13;
const WIDE: usize = 17;
const OUT: usize = 11;

/// The shapes of all gradients.
fn shapes(grads: &GradStore) -> Vec<Vec<usize>> {
    grads.get_ids().map(|id| grads.get_id(*id).unwrap().dims().to_vec()).collect()
}

#[derive(Injectable)]
struct Mlp {
    up: Adapted<Linear>,
    middle: Adapted<TransposedLinear>,
    down: Adapted<Linear>,
}

impl Mlp {
    fn new() -> Self {
        Self {
            up: Linear::new(random(&[WIDE, IN]), Some(random(&[WIDE]))).into(),
            middle: TransposedLinear::new(random(&[WIDE, WIDE + 2]), None).into(),
            down: Linear::new(random(&[OUT, WIDE + 2]), Some(random(&[OUT]))).into(),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let hidden = self.up.forward(x).unwrap().relu().unwrap();
        self.down.forward(&self.middle.forward(&hidden).unwrap().relu().unwrap()).unwrap()
    }
}

const FROZEN: [[usize; 2]; 4] = [[WIDE, IN], [WIDE, WIDE + 2], [WIDE + 2, WIDE], [OUT, WIDE + 2]];

fn has_frozen_shape(shapes: &[Vec<usize>]) -> bool {
    shapes.iter().any(|shape| FROZEN.iter().any(|frozen| shape.as_slice() == frozen))
}

#[test]
fn after_backward_no_gradient_has_the_shape_of_a_frozen_weight() {
    let lora = LoraConfig::new(3, 3.0).with_init(LoraInit::Random);
    let (loha, lokr) =
        (LohaConfig::new(3, 3.0).with_init(false), LokrConfig::new(2, 3.0).with_init(LokrInit::Random));
    let configs: [Box<dyn AdapterMethod>; 7] = [
        Box::new(lora.clone().with_targets(["up"])),
        Box::new(lora.clone().with_targets(["up", "down"])),
        Box::new(lora.with_targets(["up", "middle", "down"])),
        // Once as a low-rank update, and once as ΔW itself.
        Box::new(loha.clone().with_rank_pattern([("up", 2)]).with_targets(["up"])),
        Box::new(loha.with_rank_pattern([("up", 9)]).with_targets(["up", "down"])),
        Box::new(lokr.clone().with_targets(["up"])),
        Box::new(lokr.with_targets(["up", "down"])),
    ];
    for config in configs {
        let mut model = Mlp::new();
        model.inject_adapter(&*config, "a").unwrap();
        let x = Var::from_tensor(&random(&[5, IN])).unwrap();
        let grads = model.forward(&x).sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert!(!has_frozen_shape(&shapes(&grads)));
        assert!(grads.get(&x).is_some(), "the input still gets its gradient");
        // Activations may leave a gradient; nothing else two-dimensional but the factors has one.
        assert_eq!(grads.get_ids().count(), model.trainable_parameters().len() + 1);
    }
}

#[test]
fn a_layer_without_adapters_computes_no_gradient_of_its_weight_either() {
    let model = Mlp::new();
    let x = Var::from_tensor(&random(&[5, IN])).unwrap();
    let grads = model.forward(&x).sum_all().unwrap().backward().unwrap();
    assert!(!has_frozen_shape(&shapes(&grads)));
}

#[test]
fn candles_own_layer_computes_one_so_the_test_can_fail() {
    let plain = Linear::new(random(&[WIDE, IN]), None);
    let x = Var::from_tensor(&random(&[5, IN])).unwrap();
    let grads = plain.forward(&x).unwrap().sum_all().unwrap().backward().unwrap();
    let kept = shapes(&grads);
    assert!(kept.contains(&vec![IN, WIDE]) || kept.contains(&vec![WIDE, IN]), "{kept:?}");
}

#[test]
fn a_frozen_convolution_keeps_no_gradient_of_its_kernel() {
    let config = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
    let conv: Adapted<Conv2d> = Conv2d::new(random(&[OUT, 3, 3, 3]), Some(random(&[OUT])), config).into();
    let x = Var::from_tensor(&random(&[2, 3, 7, 5])).unwrap();
    let grads = conv.forward(&x).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(!shapes(&grads).contains(&vec![OUT, 3, 3, 3]));
}

#[test]
fn injecting_freezes_variables_of_the_base_and_an_uninjected_model_still_trains() {
    let weight = Var::from_tensor(&random(&[OUT, IN])).unwrap();
    let bias = Var::from_tensor(&random(&[OUT])).unwrap();
    #[derive(Injectable)]
    struct One {
        linear: Adapted<Linear>,
        scale: Tensor,
    }
    let scale = Var::from_tensor(&Tensor::ones(OUT, DType::F32, &Device::Cpu).unwrap()).unwrap();
    let mut model = One {
        linear: Linear::new(weight.as_tensor().clone(), Some(bias.as_tensor().clone())).into(),
        scale: scale.as_tensor().clone(),
    };
    let x = random(&[5, IN]);
    let loss = |model: &One| {
        model
            .linear
            .forward(&x)
            .unwrap()
            .broadcast_mul(&model.scale)
            .unwrap()
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap()
    };
    let grads = loss(&model).backward().unwrap();
    assert!(grads.get(&weight).is_some() && grads.get(&bias).is_some() && grads.get(&scale).is_some());
    assert!(model.trainable_parameters().is_empty(), "base weights are never among the trainable parameters");

    model.inject_adapter(&LoraConfig::new(2, 2.0).with_targets(["linear"]), "a").unwrap();
    let grads = loss(&model).backward().unwrap();
    assert!(grads.get(&weight).is_none() && grads.get(&bias).is_none() && grads.get(&scale).is_none());
    assert_eq!(model.trainable_parameters().len(), 2);
}

#[test]
fn no_grad_keeps_adapters_out_of_the_graph() {
    let mut model = Mlp::new();
    model.inject_adapter(&LoraConfig::new(3, 3.0).with_targets(["up"]), "a").unwrap();
    let x = random(&[5, IN]);
    assert!(model.forward(&x).track_op());
    assert!(!no_grad(|| model.forward(&x)).track_op());
    assert!(model.forward(&x).track_op(), "it holds only inside the closure");
    model.set_trainable("a", false).unwrap();
    assert!(!model.forward(&x).track_op());
    assert!(model.trainable_parameters().is_empty());
}
