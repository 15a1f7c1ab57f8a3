//! Losses and gradients that are NaN or infinite.

use peft_runtime::Error;
use peft_runtime::error::TrainingError;
use peft_runtime::train::{AdamW, Schedule, Trainer};
use peft_tests::training::{Method, Mlp, trainer};

use crate::trained;

#[test]
fn a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint() {
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
        let Error::Training(TrainingError::NonFiniteLoss { step, last_checkpoint, .. }) = &error else {
            panic!("{error}")
        };
        assert_eq!((*step, last_checkpoint.clone()), (3, Some(folder.path().join("step-2"))));
        assert!(error.to_string().contains("step-2"), "{error}");
    }
    assert_eq!(trained(&model), before);
}

#[test]
fn a_gradient_that_is_not_finite_is_named_and_changes_nothing() {
    let model = Mlp::adapted(Method::Lora).unwrap();
    let optimizer = AdamW::for_model(&model, 0.1).unwrap();
    let mut trainer = Trainer::new(&model, optimizer, Schedule::constant()).unwrap();
    // The root of zero has an infinite gradient.
    let loss = model.loss(0).unwrap();
    let zero = (&loss - loss.detach()).unwrap();
    let loss = (&loss + zero.sqrt().unwrap()).unwrap();
    let before = trained(&model);
    let error = trainer.step(&model, &loss).unwrap_err();
    let Error::Training(TrainingError::NonFiniteGradient { step: 1, parameter, last_checkpoint: None }) =
        &error
    else {
        panic!("{error}")
    };
    assert!(parameter.contains("lora_"), "{parameter}");
    assert_eq!(trained(&model), before);
}
