//! The optimisers, their groups, and the trainer that runs them.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Optimizer as _, ParamsAdamW};
use peft_runtime::prelude::*;
use peft_runtime::train::{
    AdamW, LoraFa, LoraPlus, Optimizer, Schedule, Trainer, clip_by_global_norm, lora_plus_groups,
};
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::distance;
use peft_tests::training::{Method, Mlp};

use crate::trained;

#[test]
fn adamw_agrees_with_candles() {
    let models = [Mlp::adapted(Method::Lora).unwrap(), Mlp::adapted(Method::Lora).unwrap()];
    let [ours, theirs] = &models;
    let vars = theirs.trainable_parameters().into_iter().map(|(_, var)| var).collect();
    let params = ParamsAdamW { lr: 0.02, weight_decay: 0.01, ..ParamsAdamW::default() };
    let mut reference = candle_nn::AdamW::new(vars, params).unwrap();
    let mut optimizer = AdamW::for_model(ours, 0.02).unwrap();
    for number in 0..10 {
        optimizer.step(&ours.loss(number).unwrap().backward().unwrap(), 1.0).unwrap();
        reference.step(&theirs.loss(number).unwrap().backward().unwrap()).unwrap();
    }
    let start = Mlp::adapted(Method::Lora).unwrap();
    let all = ours.trainable_parameters().into_iter().zip(theirs.trainable_parameters());
    for (((name, ours), (_, theirs)), (_, start)) in all.zip(start.trainable_parameters()) {
        assert_close(&ours, &theirs, Tolerance::absolute(1e-5), &name);
        assert!(distance(&ours, &start).unwrap() > 1e-3, "{name}");
    }
}

#[test]
fn a_trainer_does_what_its_parts_do() {
    let models = [Mlp::adapted(Method::Lora).unwrap(), Mlp::adapted(Method::Lora).unwrap()];
    let [by_trainer, by_hand] = &models;
    let schedule = Schedule::linear(6).with_warm_up(2);
    let mut trainer =
        Trainer::new(by_trainer, AdamW::for_model(by_trainer, 0.02).unwrap(), schedule).unwrap();
    trainer = trainer.with_clipping(0.1);
    let mut optimizer = AdamW::for_model(by_hand, 0.02).unwrap();
    let parameters = by_hand.trainable_parameters();
    for number in 0..6 {
        let report = trainer.step(by_trainer, &by_trainer.loss(number).unwrap()).unwrap();
        let loss = by_hand.loss(number).unwrap();
        let mut grads = loss.backward().unwrap();
        let norm = clip_by_global_norm(&mut grads, &parameters, 0.1).unwrap();
        optimizer.step(&grads, schedule.factor(number)).unwrap();
        assert_eq!(report.loss, f64::from(loss.to_scalar::<f32>().unwrap()));
        assert_eq!((report.step, report.updated, report.gradient_norm), (number + 1, true, Some(norm)));
        assert_eq!(report.learning_rate, 0.02 * schedule.factor(number));
    }
    assert_eq!(trained(by_trainer), trained(by_hand));
    assert!(trainer.audit().unwrap().is_complete());
}

#[test]
fn accumulated_losses_train_as_their_mean() {
    let models = [(); 2].map(|()| {
        let mut model = Mlp::adapted(Method::Lora).unwrap();
        model.eval();
        model
    });
    let [one_by_one, together] = &models;
    let new = |model: &Mlp| {
        Trainer::new(model, AdamW::for_model(model, 0.02).unwrap(), Schedule::constant()).unwrap()
    };
    let (mut accumulating, mut plain) = (new(one_by_one).with_accumulation(3), new(together));
    for step in 0..4u64 {
        let numbers = [3 * step, 3 * step + 1, 3 * step + 2];
        let losses = numbers.map(|number| together.loss(number).unwrap());
        let mean = Tensor::stack(&losses, 0).unwrap().mean_all().unwrap();
        plain.step(together, &mean).unwrap();
        for number in numbers {
            let report = accumulating.step(one_by_one, &one_by_one.loss(number).unwrap()).unwrap();
            assert_eq!(report.updated, number % 3 == 2);
        }
    }
    assert_eq!((accumulating.steps(), accumulating.batches()), (4, 12));
    let all = one_by_one.trainable_parameters().into_iter().zip(together.trainable_parameters());
    for ((name, ours), (_, theirs)) in all {
        assert_close(&ours, &theirs, Tolerance::absolute(2e-3), &name);
    }
}

/// A model with a layer of each kind that LoRA+ distinguishes.
#[derive(Injectable)]
struct Sorts {
    table: Adapted<Embedding>,
    linear: Adapted<Linear>,
    norm: Adapted<LayerNorm>,
    head: Adapted<Linear>,
}

#[test]
fn lora_plus_groups_are_those_of_peft() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let mut model = Sorts {
        table: Embedding::new(zeros(&[5, 4]), 4).into(),
        linear: Linear::new(zeros(&[4, 4]), Some(zeros(&[4]))).into(),
        norm: LayerNorm::new(zeros(&[4]), zeros(&[4]), 1e-5).into(),
        head: Linear::new(zeros(&[2, 4]), Some(zeros(&[2]))).into(),
    };
    let config = LoraConfig::new(2, 4.0)
        .with_targets(["table", "linear"])
        .with_modules_to_save(["norm", "head"])
        .with_bias(Bias::LoraOnly);
    model.inject_adapter(&config, "default").unwrap();
    let groups = lora_plus_groups(&model, 1e-3, LoraPlus::new(8.0).with_weight_decay(0.1));
    let found: Vec<(&str, f64, f64, Vec<&str>)> = groups
        .iter()
        .map(|group| {
            let names = group.parameters().iter().map(|(name, _)| name.as_str()).collect();
            (group.name(), group.learning_rate(), group.weight_decay(), names)
        })
        .collect();
    let a = vec!["linear.lora_A.default.weight", "head.modules_to_save.default.weight"];
    let embedding = vec!["table.lora_embedding_A.default", "table.lora_embedding_B.default"];
    let no_decay = vec![
        "linear.base_layer.bias",
        "norm.modules_to_save.default.weight",
        "norm.modules_to_save.default.bias",
        "head.modules_to_save.default.bias",
    ];
    assert_eq!(
        found,
        [
            ("A", 1e-3, 0.1, a),
            ("embedding", 1e-6, 0.1, embedding),
            ("B", 8e-3, 0.1, vec!["linear.lora_B.default.weight"]),
            ("B, no decay", 8e-3, 0.0, no_decay),
        ]
    );
    AdamW::new(groups).unwrap();
}

#[test]
fn lora_fa_leaves_a_as_it_is_and_lowers_the_loss() {
    let mut model = Mlp::adapted(Method::Lora).unwrap();
    model.eval();
    let start = trained(&model);
    let mut optimizer = LoraFa::new(&model, 0.02, 0.0).unwrap();
    let first = model.loss(0).unwrap().to_scalar::<f32>().unwrap();
    for _ in 0..20 {
        optimizer.step(&model.loss(0).unwrap().backward().unwrap(), 1.0).unwrap();
    }
    assert!(model.loss(0).unwrap().to_scalar::<f32>().unwrap() < first);
    for ((name, before), (_, after)) in start.iter().zip(&trained(&model)) {
        assert_eq!(before == after, name.contains("lora_A"), "{name}");
    }
}
