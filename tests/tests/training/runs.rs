//! Checkpoints of a run, and what a run resumes with.

use peft_runtime::error::TrainingError;
use std::path::Path;

use candle_core::{Device, Var};
use peft_runtime::prelude::*;
use peft_runtime::train::{AdamW, Checkpoints, ParameterGroup, Schedule, Trainer};
use peft_runtime::{Error, Result};
use peft_tests::tensors::bits;
use peft_tests::training::{Method, Mlp, files, input, run, trainer};

use crate::trained;

fn step_folder(folder: &Path, step: u64) -> Vec<(String, Vec<u8>)> {
    files(&folder.join(format!("step-{step}"))).unwrap()
}

#[test]
fn a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one() {
    for method in [Method::Lora, Method::AdaLora] {
        let folder = tempfile::tempdir().unwrap();
        let (through, broken) = (folder.path().join("through"), folder.path().join("broken"));
        let model = run(method, &through, 2, 30, || ()).unwrap();
        // Breaks at a checkpoint, between checkpoints, and in the middle of AdaLoRA's pruning.
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
    // Somebody who has checkpoints does not want to start from the beginning.
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
    // Continuing to train would mix two runs in one folder.
    let error = trainer.step(&other, &other.loss(0).unwrap()).unwrap_err();
    assert!(matches!(error, Error::Training(TrainingError::Checkpoint { .. })), "{error}");
}

#[test]
fn a_checkpoint_in_the_middle_of_an_accumulation_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = Mlp::adapted(Method::Lora).unwrap();
    let mut trainer = trainer(&model, Method::Lora, folder.path(), 1).unwrap();
    trainer.step(&model, &model.loss(0).unwrap()).unwrap();
    assert!(matches!(trainer.save(&model), Err(Error::Training(TrainingError::Checkpoint { .. }))));
    trainer.step(&model, &model.loss(1).unwrap()).unwrap();
    assert!(folder.path().join("step-1/training.json").is_file());
}

#[test]
fn variables_outside_the_model_train_and_are_saved_with_it() -> Result<()> {
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
