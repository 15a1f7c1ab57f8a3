//! Training: the optimiser, the trainer, checkpoints of a run, the gradient audit, checkpoints of the graph.

use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Embedding, LayerNorm, Linear, Module, Optimizer as _, ParamsAdamW};
use peft_runtime::prelude::*;
use peft_runtime::train::{
    AdamW, Checkpoints, LoraFa, LoraPlus, MissingCause, Optimizer, ParameterGroup, Schedule, Trainer, audit,
    lora_plus_groups,
};
use peft_runtime::{Error, Result};
use peft_tests::specimen::bits;
use peft_tests::training::{Method, Mlp, files, input, run, trainer};

/// The bits of everything that trains.
fn trained(model: &Mlp) -> Vec<(String, Vec<u64>)> {
    let parameters = model.trainable_parameters().into_iter();
    parameters.map(|(name, var)| (name, bits(&var).unwrap())).collect()
}

fn step_folder(folder: &Path, step: u64) -> Vec<(String, Vec<u8>)> {
    files(&folder.join(format!("step-{step}"))).unwrap()
}

// The optimiser.

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
        let distance = |a: &Var, b: &Var| peft_tests::specimen::distance(a, b).unwrap();
        assert!(distance(&ours, &theirs) < 1e-5, "{name}");
        assert!(distance(&ours, &start) > 1e-3, "{name}");
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
        let norm = peft_runtime::train::clip_by_global_norm(&mut grads, &parameters, 0.1).unwrap();
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
        assert!(peft_tests::specimen::distance(&ours, &theirs).unwrap() < 2e-3, "{name}");
    }
}

/// A model with a layer of each sort that LoRA+ tells apart.
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
fn lora_fa_leaves_a_alone_and_lowers_the_loss() {
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

// Checkpoints of a run.

#[test]
fn a_resumed_run_ends_with_the_bytes_of_one_without_a_break() {
    for method in [Method::Lora, Method::AdaLora] {
        let folder = tempfile::tempdir().unwrap();
        let (through, broken) = (folder.path().join("through"), folder.path().join("broken"));
        let model = run(method, &through, 2, 30, || ()).unwrap();
        // Breaks that are a checkpoint, that are none, and that come in the middle of the cuts of AdaLoRA.
        for steps in [1, 4, 9, 9, 10, 17, 25] {
            run(method, &broken, 2, steps, || ()).unwrap();
        }
        let resumed = run(method, &broken, 2, 30, || ()).unwrap();
        assert_eq!(trained(&model), trained(&resumed), "{method:?}");
        let (expected, found) = (step_folder(&through, 30), step_folder(&broken, 30));
        let names: Vec<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains(&"adapter_model.safetensors") && names.contains(&"optimizer.safetensors"));
        for ((name, expected), (other, found)) in expected.iter().zip(&found) {
            assert!(name == other && expected == found, "{method:?}: {name} {other}");
        }
        // Only the newest are kept.
        let kept: Vec<String> = std::fs::read_dir(&through)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(kept.len() == 2 && kept.contains(&"step-28".to_owned()), "{kept:?}");
    }
}

#[test]
fn a_checkpoint_is_an_adapter_that_loads() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = run(Method::Lora, folder.path(), 3, 3, || ()).unwrap();
    model.eval();
    let mut fresh = Mlp::new().unwrap();
    fresh.load_adapter(folder.path().join("step-3"), "default").unwrap();
    let outputs = [model, fresh].map(|model| bits(&model.forward(&input(0).unwrap()).unwrap()).unwrap());
    assert_eq!(outputs[0], outputs[1]);
}

#[test]
fn a_checkpoint_that_is_cut_short_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    run(Method::Lora, folder.path(), 2, 4, || ()).unwrap();
    let checkpoints = Checkpoints::new(folder.path());
    assert_eq!(checkpoints.latest().unwrap().unwrap().state().step, 4);
    let path = folder.path().join("step-4/optimizer.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let latest = checkpoints.latest().unwrap().unwrap();
    assert_eq!((latest.state().step, latest.state().batches), (2, 4));
    std::fs::write(folder.path().join("step-2/training.json"), "{").unwrap();
    // Starting anew is not what somebody wants who has checkpoints.
    let error = checkpoints.latest().unwrap_err().chain();
    assert!(error.contains("optimizer.safetensors"), "{error}");
}

#[test]
fn a_checkpoint_of_another_run_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    run(Method::Lora, folder.path(), 2, 4, || ()).unwrap();
    let mut other = Mlp::new().unwrap();
    other.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(["up"]), "default").unwrap();
    let before = trained(&other);
    let optimizer = AdamW::for_model(&other, 0.1).unwrap();
    let trainer = Trainer::new(&other, optimizer, Schedule::constant()).unwrap();
    let mut trainer = trainer.with_checkpoints(folder.path(), 2);
    let error = trainer.resume(&other).unwrap_err().chain();
    assert!(error.contains("blocks.0.down.lora_A.default.weight"), "{error}");
    assert_eq!((trained(&other), trainer.steps()), (before, 0));
    // Training on would mix two runs in one folder.
    let error = trainer.step(&other, &other.loss(0).unwrap()).unwrap_err();
    assert!(matches!(error, Error::Checkpoint { .. }), "{error}");
}

#[test]
fn a_checkpoint_in_the_middle_of_an_accumulation_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = Mlp::adapted(Method::Lora).unwrap();
    let mut trainer = trainer(&model, Method::Lora, folder.path(), 1).unwrap();
    trainer.step(&model, &model.loss(0).unwrap()).unwrap();
    assert!(matches!(trainer.save(&model), Err(Error::Checkpoint { .. })));
    trainer.step(&model, &model.loss(1).unwrap()).unwrap();
    assert!(folder.path().join("step-1/training.json").is_file());
}

// Losses and gradients that are no numbers.

#[test]
fn a_loss_that_is_no_number_stops_with_the_last_good_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let model = Mlp::adapted(Method::Lora).unwrap();
    let mut trainer = trainer(&model, Method::Lora, folder.path(), 1).unwrap();
    for number in 0..4 {
        trainer.step(&model, &model.loss(number).unwrap()).unwrap();
    }
    let before = trained(&model);
    for bad in [f64::NAN, f64::INFINITY] {
        let loss = (model.loss(4).unwrap() * bad).unwrap();
        let error = trainer.step(&model, &loss).unwrap_err();
        let Error::NonFiniteLoss { step, last_checkpoint, .. } = &error else { panic!("{error}") };
        assert_eq!((*step, last_checkpoint.clone()), (3, Some(folder.path().join("step-2"))));
        assert!(error.to_string().contains("step-2"), "{error}");
    }
    assert_eq!(trained(&model), before);
}

#[test]
fn a_gradient_that_is_no_number_is_named_and_changes_nothing() {
    let model = Mlp::adapted(Method::Lora).unwrap();
    let optimizer = AdamW::for_model(&model, 0.1).unwrap();
    let mut trainer = Trainer::new(&model, optimizer, Schedule::constant()).unwrap();
    // The root of zero has an infinite gradient.
    let loss = model.loss(0).unwrap();
    let zero = (&loss - loss.detach()).unwrap();
    let loss = (&loss + zero.sqrt().unwrap()).unwrap();
    let before = trained(&model);
    let error = trainer.step(&model, &loss).unwrap_err();
    let Error::NonFiniteGradient { step: 1, parameter, last_checkpoint: None } = &error else {
        panic!("{error}")
    };
    assert!(parameter.contains("lora_"), "{parameter}");
    assert_eq!(trained(&model), before);
}

// The audit.

/// Attention with a softmax of choice, beside a layer that is never called.
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
            let weight = Tensor::randn(0f32, 1., (4, 4), &Device::Cpu).unwrap();
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
            let x = Tensor::randn(0f32, 1., (3, 4), &Device::Cpu)?;
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
fn the_audit_tells_a_layer_that_is_left_out_from_one_outside_of_the_graph() {
    let model = Attention::new(&["q_proj", "spare"]);
    let grads = model.grads(softmax);
    assert_eq!(causes(&model, &grads), [("spare".to_owned(), MissingCause::NotCalled)]);
    no_grad(|| model.spare.forward(&Tensor::ones((1, 4), DType::F32, &Device::Cpu).unwrap())).unwrap();
    assert_eq!(causes(&model, &grads), [("spare".to_owned(), MissingCause::OutsideGraph)]);
}

#[test]
fn the_audit_tells_adapters_that_do_not_act() {
    let mut model = Attention::new(&["q_proj"]);
    let only = |cause| [("q_proj".to_owned(), cause)];
    model.disable_adapters();
    assert_eq!(causes(&model, &GradStore::default()), only(MissingCause::Disabled));
    model.enable_adapters();
    model.merge_adapters(&MergeOptions::active()).unwrap();
    assert_eq!(causes(&model, &GradStore::default()), only(MissingCause::Merged));
    model.unmerge_adapters().unwrap();
    // One that trains and waits is fine beside one that acts, and what is missing where none does.
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
    assert!(matches!(error, Error::MissingGradients { .. }), "{error}");
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
    // A loss that has a graph, and none of the adapter's.
    let loss = (model.loss(0).unwrap() * x.as_tensor()).unwrap();
    let error = trainer.step(&model, &loss).unwrap_err();
    assert!(error.to_string().contains("enable_adapters"), "{error}");
    model.enable_adapters();
    trainer.step(&model, &model.loss(0).unwrap()).unwrap();
}

#[test]
fn variables_beside_the_model_train_and_are_saved_with_it() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let train = |steps: u64| -> Result<Vec<f32>> {
        let model = Mlp::adapted(Method::Lora)?;
        let scale = Var::new(&[1f32, 2., 3.], &Device::Cpu)?;
        let own = vec![("scale".to_owned(), scale.clone())];
        let groups = vec![
            ParameterGroup::new("adapter", model.trainable_parameters(), 0.01),
            ParameterGroup::new("own", own, 0.1).with_weight_decay(0.0),
        ];
        let trainer = Trainer::new(&model, AdamW::new(groups)?, Schedule::constant())?;
        let mut trainer = trainer.with_checkpoints(folder.path(), 1);
        trainer.resume(&model)?;
        while trainer.steps() < steps {
            let y = model.forward(&input(trainer.batches())?)?.broadcast_mul(&scale)?;
            trainer.step(&model, &y.sqr()?.mean_all()?)?;
        }
        Ok(scale.to_vec1()?)
    };
    let after_three = train(3)?;
    assert_eq!(train(3)?, after_three);
    assert_ne!(train(4)?, after_three);
    Ok(())
}

// Checkpoints of the graph.

#[test]
fn checkpointed_blocks_have_the_same_gradients_with_dropout() {
    let model = Mlp::adapted(Method::Lora).unwrap();
    // A clone shares the variables, and its dropout begins where the model's does.
    let twin = model.clone();
    for number in 0..3 {
        let x = input(number).unwrap();
        let plain = model.forward(&x).unwrap().sqr().unwrap().mean_all().unwrap();
        let checkpointed = twin.forward_checkpointed(&x).unwrap().sqr().unwrap().mean_all().unwrap();
        assert_eq!(bits(&plain).unwrap(), bits(&checkpointed).unwrap());
        let (plain, checkpointed) = (plain.backward().unwrap(), checkpointed.backward().unwrap());
        audit(&twin, &checkpointed).ensure_complete().unwrap();
        for (name, var) in model.trainable_parameters() {
            let [a, b] = [&plain, &checkpointed].map(|grads| bits(grads.get(&var).unwrap()).unwrap());
            assert_eq!(a, b, "{name}");
        }
    }
}
