//! The model's own dropout: when it acts, which masks it draws, and that a resumed run continues them.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Linear, Module};
use peft_runtime::Result;
use peft_runtime::nn::{Dropout, recomputed};
use peft_runtime::prelude::*;
use peft_runtime::train::{AdamW, Schedule, Trainer, audit};
use peft_tests::tensors::bits;
use peft_tests::training::{files, input};

#[derive(Clone, Injectable)]
struct Model {
    first: Adapted<Linear>,
    #[peft(blocks)]
    blocks: Vec<Block>,
}

#[derive(Clone, Injectable)]
struct Block {
    linear: Adapted<Linear>,
    dropout: Dropout,
}

const SIZE: usize = 6;

fn linear(salt: f32) -> Adapted<Linear> {
    let values: Vec<f32> = (0..SIZE * SIZE).map(|i| 0.6 * (salt + 1.7 * i as f32).sin()).collect();
    Linear::new(Tensor::from_vec(values, (SIZE, SIZE), &Device::Cpu).unwrap(), None).into()
}

impl Block {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x + self.dropout.forward(&self.linear.forward(x)?.tanh()?)?
    }
}

impl Model {
    fn new(probability: f64) -> Self {
        let block = |salt| Block { linear: linear(salt), dropout: Dropout::new(probability).unwrap() };
        Self { first: linear(0.0), blocks: vec![block(1.0), block(2.0)] }
    }

    /// With an adapter, in training mode.
    fn training(seed: u64) -> Self {
        let mut model = Self::new(0.5);
        model.inject_adapter(&lora().with_seed(seed), "default").unwrap();
        model.train();
        model
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.blocks.iter().try_fold(self.first.forward(x)?, |x, block| block.forward(&x))
    }

    /// The bits of the output for the first batch.
    fn output(&self) -> Vec<u64> {
        bits(&self.forward(&input(0).unwrap()).unwrap()).unwrap()
    }
}

fn lora() -> LoraConfig {
    LoraConfig::new(2, 4.0).with_targets(targets!(Model; "linear")).with_init(LoraInit::Random)
}

/// The next mask of a layer, on ones.
fn mask(dropout: &Dropout) -> Vec<u64> {
    bits(&dropout.forward(&Tensor::ones((5, SIZE), DType::F32, &Device::Cpu).unwrap()).unwrap()).unwrap()
}

fn texts(paths: &[peft_runtime::ModulePath]) -> Vec<String> {
    paths.iter().map(ToString::to_string).collect()
}

#[test]
fn dropout_acts_only_in_training_mode_with_adapters_and_without() {
    for with_adapter in [false, true] {
        let mut model = Model::new(0.5);
        if with_adapter {
            model.inject_adapter(&lora(), "default").unwrap();
        }
        let start = model.output();
        assert_eq!(model.output(), start, "a model starts in evaluation mode");
        model.train();
        let (first, second) = (model.output(), model.output());
        assert!(first != start && second != start && first != second, "each call draws a new mask");
        model.eval();
        assert_eq!(model.output(), start);
    }
}

#[test]
fn a_probability_of_zero_changes_nothing() {
    let mut model = Model::new(0.0);
    let start = model.output();
    model.train();
    assert_eq!(model.output(), start);
}

#[test]
fn masks_depend_only_on_the_seed_the_path_and_the_call() {
    let sequence = |seed| {
        let model = Model::training(seed);
        [model.output(), model.output(), model.output()]
    };
    assert_eq!(sequence(1), sequence(1));
    assert!(sequence(1).iter().zip(sequence(2)).all(|(a, b)| *a != b), "a different seed");
    let model = Model::training(1);
    assert_ne!(mask(&model.blocks[0].dropout), mask(&model.blocks[1].dropout), "a different path");
    // A clone continues from where the model is, independently.
    let copy = model.clone();
    assert_eq!(copy.output(), model.output());
    let _ = copy.output();
    assert_ne!(copy.output(), model.output());
}

#[test]
fn threads_share_the_sequence_of_masks() {
    let model = Model::training(1);
    let serial = model.clone();
    let mut expected: Vec<Vec<u64>> = (0..8).map(|_| mask(&serial.blocks[0].dropout)).collect();
    let dropout = &model.blocks[0].dropout;
    let mut found: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| [mask(dropout), mask(dropout)])).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn the_first_adapter_starts_in_the_mode_of_the_model() {
    // The model's own dropout drops nothing, so that only the adapter's shows.
    for training in [false, true] {
        let mut model = Model::new(0.0);
        if training {
            model.train();
        }
        model.inject_adapter(&lora().with_dropout(0.5), "default").unwrap();
        assert_eq!(model.output() != model.output(), training);
    }
}

#[test]
fn copies_of_replicated_blocks_draw_masks_of_their_own() {
    let mut model = Model::new(0.5);
    model.train();
    model.inject_adapter(&lora().with_layer_replication([0..2, 0..2]), "default").unwrap();
    let masks: Vec<Vec<u64>> = model.blocks.iter().map(|block| mask(&block.dropout)).collect();
    assert_eq!(masks.len(), 4);
    for (index, mask) in masks.iter().enumerate() {
        assert!(!masks[..index].contains(mask), "block {index}");
    }
}

#[test]
fn a_recomputed_block_drops_the_same() {
    let model = Model::training(7);
    let twin = model.clone();
    for number in 0..3 {
        let x = input(number).unwrap();
        let plain = model.forward(&x).unwrap();
        let first = twin.first.forward(&x).unwrap();
        let again = |x: Tensor, block: &Block| recomputed(block, &x, Block::forward);
        let again = twin.blocks.iter().try_fold(first, again).unwrap();
        assert_eq!(bits(&plain).unwrap(), bits(&again).unwrap());
        let [plain, again] = [plain, again].map(|y| y.sqr().unwrap().mean_all().unwrap().backward().unwrap());
        audit(&twin, &again).ensure_complete().unwrap();
        for (name, var) in model.trainable_parameters() {
            let [a, b] = [&plain, &again].map(|grads| bits(grads.get(&var).unwrap()).unwrap());
            assert_eq!(a, b, "{name}");
        }
    }
}

/// Resumes the run in `folder`, or starts it, until it has taken `steps` steps.
fn run(folder: &Path, steps: u64) -> Result<()> {
    let model = Model::training(7);
    let trainer = Trainer::new(&model, AdamW::for_model(&model, 0.05)?, Schedule::constant())?;
    let mut trainer = trainer.with_checkpoints(folder, 1);
    trainer.resume(&model)?;
    while trainer.steps() < steps {
        let loss = model.forward(&input(trainer.batches())?)?.sqr()?.mean_all()?;
        trainer.step(&model, &loss)?;
    }
    Ok(())
}

#[test]
fn a_resumed_run_drops_what_it_would_have_dropped() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(whole.path(), 6).unwrap();
    for steps in [1, 3, 6] {
        run(parts.path(), steps).unwrap();
    }
    let [whole, parts] = [whole, parts].map(|folder| files(&folder.path().join("step-6")).unwrap());
    assert!(whole == parts, "the same bytes");
    let (_, state) = whole.iter().find(|(name, _)| name == "training.json").unwrap();
    let state = String::from_utf8_lossy(state);
    assert!(state.contains("\"/blocks.1.dropout\": 6"), "{state}");
}

#[test]
fn dropout_carries_no_adapter() {
    let base = Model::new(0.5);
    let named = LoraConfig::new(2, 4.0).with_targets(["blocks.1.dropout"]);
    let error = base.clone().inject_adapter(&named, "default").unwrap_err().to_string();
    assert!(
        error.ends_with("`blocks.1.dropout` is a plain `Dropout` and cannot carry an adapter"),
        "{error}"
    );
    let all = LoraConfig::new(2, 4.0).with_targets(TargetModules::all_linear());
    let report = base.clone().inject_adapter(&all, "default").unwrap();
    assert_eq!(texts(&report.adapted), ["first", "blocks.0.linear", "blocks.1.linear"]);
}

#[test]
fn a_module_that_trains_in_full_keeps_its_dropout_which_has_nothing_to_train() {
    let base = Model::new(0.5);
    let copying = |name: &str| LoraConfig::new(2, 4.0).with_targets(["first"]).with_modules_to_save([name]);
    let mut model = base.clone();
    let report = model.inject_adapter(&copying("blocks.1"), "default").unwrap();
    assert_eq!(texts(&report.copied), ["blocks.1.linear"]);
    model.train();
    assert_ne!(model.output(), model.output());
    let error = base.clone().inject_adapter(&copying("dropout"), "default").unwrap_err().to_string();
    assert!(error.ends_with("`modules_to_save` names `dropout`, which has nothing to train"), "{error}");
}

#[test]
fn dropout_prints_as_in_pytorch() {
    let printed = |probability| Model::new(probability).module_tree();
    for (probability, text) in [(0.1, "0.1"), (0.0, "0.0"), (0.00001, "1e-05")] {
        let line = format!("(dropout): Dropout(p={text}, inplace=False)\n");
        assert!(printed(probability).contains(&line), "{}", printed(probability));
    }
}
