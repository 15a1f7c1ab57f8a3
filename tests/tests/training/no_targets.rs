//! Batches in which no target counts.

use candle_core::{Device, Tensor};
use peft_runtime::nn::{count_targets, cross_entropy};
use peft_runtime::train::{AdamW, Schedule, Trainer};
use peft_tests::training::{Method, Mlp, input};

use crate::trained;

/// The batches' labels, of which those of the second are all masked.
fn labels(number: u64) -> Tensor {
    let rows = input(number).unwrap().dim(0).unwrap();
    let label = |row: usize| match number {
        1 => -100,
        _ => i64::try_from(row % 3).unwrap(),
    };
    Tensor::from_vec((0..rows).map(label).collect::<Vec<i64>>(), rows, &Device::Cpu).unwrap()
}

fn loss(model: &Mlp, number: u64) -> candle_core::Result<Tensor> {
    cross_entropy(&model.forward(&input(number)?)?, &labels(number), Some(-100))
}

#[test]
fn a_masked_batch_has_no_loss_and_changes_nothing() {
    let model = Mlp::adapted(Method::Lora).unwrap();
    let before = trained(&model);
    let text = loss(&model, 1).unwrap_err().to_string();
    let count = labels(1).elem_count();
    assert!(text.contains(&format!("no target counts: all {count} are -100")), "{text}");
    assert_eq!(trained(&model), before);
    // A mean of one's own over nothing.
    let mut trainer =
        Trainer::new(&model, AdamW::for_model(&model, 0.1).unwrap(), Schedule::constant()).unwrap();
    let nothing = (model.loss(0).unwrap() * f64::NAN).unwrap();
    let text = trainer.step(&model, &nothing).unwrap_err().to_string();
    assert!(text.contains("as is a mean over a batch in which no target counts"), "{text}");
}

#[test]
fn a_masked_batch_among_those_of_one_step_is_left_out() {
    let models = [(); 2].map(|()| {
        let mut model = Mlp::adapted(Method::Lora).unwrap();
        peft_runtime::prelude::PeftModel::eval(&mut model);
        model
    });
    let trainers = models.each_ref().map(|model| {
        Trainer::new(model, AdamW::for_model(model, 0.02).unwrap(), Schedule::constant())
            .unwrap()
            .with_accumulation(2)
    });
    let ([all, without], [mut skipping, mut plain]) = (&models, trainers);
    for number in 0..3 {
        if count_targets(&labels(number), -100).unwrap() == 0 {
            skipping.skip_batch();
            continue;
        }
        let updated = skipping.step(all, &loss(all, number).unwrap()).unwrap().updated;
        assert_eq!(updated, number == 2, "two losses make a step");
    }
    for number in [0, 2] {
        plain.step(without, &loss(without, number).unwrap()).unwrap();
    }
    assert_eq!(trained(all), trained(without));
    assert_eq!((skipping.batches(), skipping.steps()), (3, 1), "the next batch is the fourth");
}
