//! The gradient audit.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{LayerNorm, Linear, Module};
use peft_runtime::Error;
use peft_runtime::error::TrainingError;
use peft_runtime::prelude::*;
use peft_runtime::train::{AdamW, MissingCause, Schedule, Trainer, audit};
use peft_tests::tensors::random;
use peft_tests::training::{Method, Mlp};

/// Attention with a given softmax, and a layer that is never called.
#[derive(Injectable)]
struct Attention {
    norm: LayerNorm,
    q_proj: Adapted<Linear>,
    k_proj: Adapted<Linear>,
    v_proj: Adapted<Linear>,
    spare: Adapted<Linear>,
}

impl Attention {
    fn new(targets: &[&str]) -> Self {
        let linear = || {
            let weight = random((4, 4));
            Adapted::new(Linear::new(weight, None))
        };
        let vector = Tensor::ones(4, DType::F32, &Device::Cpu).unwrap();
        let norm = LayerNorm::new(vector.clone(), vector, 1e-5);
        let mut model = Self { norm, q_proj: linear(), k_proj: linear(), v_proj: linear(), spare: linear() };
        let config = LoraConfig::new(2, 4.0).with_targets(targets);
        model.inject_adapter(&config, "default").unwrap();
        model
    }

    fn grads(&self, softmax: fn(&Tensor) -> candle_core::Result<Tensor>) -> GradStore {
        let compute = || {
            let x = random((3, 4));
            let scores = self.q_proj.forward(&x)?.matmul(&self.k_proj.forward(&x)?.t()?)?;
            softmax(&scores)?.matmul(&self.v_proj.forward(&x)?)?.sqr()?.sum_all()?.backward()
        };
        compute().unwrap()
    }
}

fn softmax(scores: &Tensor) -> candle_core::Result<Tensor> {
    candle_nn::ops::softmax(scores, candle_core::D::Minus1)
}

/// The layers without gradients, and why.
fn causes(model: &Attention, grads: &GradStore) -> Vec<(String, MissingCause)> {
    let found = audit(model, grads);
    let mut causes: Vec<_> =
        found.missing().iter().map(|missing| (missing.module.to_string(), missing.cause.clone())).collect();
    causes.dedup();
    causes
}

#[test]
fn the_audit_finds_what_a_fused_softmax_cuts_off() {
    let model = Attention::new(&["q_proj", "k_proj", "v_proj"]);
    let grads = model.grads(candle_nn::ops::softmax_last_dim);
    let cut = MissingCause::Cut { next: Some("v_proj".into()) };
    assert_eq!(causes(&model, &grads), [("q_proj".to_owned(), cut.clone()), ("k_proj".to_owned(), cut)]);
    let found = audit(&model, &grads);
    assert_eq!((found.trainable(), found.reached()), (6, 2));
    let error = found.ensure_complete().unwrap_err().to_string();
    for word in
        ["4 of 6", "`q_proj` (lora_A.default.weight, lora_B.default.weight)", "softmax_last_dim", "`norm` is"]
    {
        assert!(error.contains(word), "{word}: {error}");
    }
    found.ensure_any().unwrap();
    audit(&model, &model.grads(softmax)).ensure_complete().unwrap();
}

#[test]
fn the_audit_distinguishes_a_layer_that_is_left_out_from_one_outside_the_graph() {
    let model = Attention::new(&["q_proj", "spare"]);
    let grads = model.grads(softmax);
    assert_eq!(causes(&model, &grads), [("spare".to_owned(), MissingCause::NotCalled)]);
    no_grad(|| model.spare.forward(&Tensor::ones((1, 4), DType::F32, &Device::Cpu).unwrap())).unwrap();
    assert_eq!(causes(&model, &grads), [("spare".to_owned(), MissingCause::OutsideGraph)]);
}

#[test]
fn the_audit_says_why_adapters_do_not_act() {
    let mut model = Attention::new(&["q_proj"]);
    let only = |cause| [("q_proj".to_owned(), cause)];
    model.disable_adapters();
    assert_eq!(causes(&model, &GradStore::default()), only(MissingCause::Disabled));
    model.enable_adapters();
    model.merge_adapters(&MergeOptions::active()).unwrap();
    assert_eq!(causes(&model, &GradStore::default()), only(MissingCause::Merged));
    model.unmerge_adapters().unwrap();
    // A trainable but inactive adapter is fine while another one is active, and is reported once none is.
    model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(["k_proj"]), "other").unwrap();
    audit(&model, &model.grads(softmax)).ensure_complete().unwrap();
    model.set_adapters(&[]).unwrap();
    let waiting = ["q_proj", "k_proj"].map(|layer| (layer.to_owned(), MissingCause::Inactive));
    assert_eq!(causes(&model, &GradStore::default()), waiting);
}

#[test]
fn the_audit_names_adapters_that_are_frozen() {
    let mut model = Attention::new(&["q_proj"]);
    model.set_trainable("default", false).unwrap();
    let found = audit(&model, &GradStore::default());
    assert_eq!((found.trainable(), found.is_complete()), (0, false));
    let error = found.ensure_complete().unwrap_err().to_string();
    assert!(error.contains("`default` was loaded for inference or frozen"), "{error}");
    let error = AdamW::for_model(&model, 0.1)
        .and_then(|optimizer| Trainer::new(&model, optimizer, Schedule::constant()))
        .unwrap_err();
    assert!(matches!(error, Error::Training(TrainingError::MissingGradients { .. })), "{error}");
}

#[test]
fn a_trainer_refuses_to_train_nothing() {
    let mut model = Mlp::adapted(Method::Lora).unwrap();
    let new = |model: &Mlp| {
        Trainer::new(model, AdamW::for_model(model, 0.1).unwrap(), Schedule::constant()).unwrap()
    };
    let mut trainer = new(&model);
    model.disable_adapters();
    let x = Var::new(1f32, &Device::Cpu).unwrap();
    // A loss whose graph contains none of the adapter's tensors.
    let loss = (model.loss(0).unwrap() * x.as_tensor()).unwrap();
    let error = trainer.step(&model, &loss).unwrap_err();
    assert!(error.to_string().contains("enable_adapters"), "{error}");
    model.enable_adapters();
    trainer.step(&model, &model.loss(0).unwrap()).unwrap();
}
