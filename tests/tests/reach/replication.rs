//! `layer_replication`: the list of blocks is rebuilt from ranges of it, and the copies have their own adapters.

use candle_core::Tensor;
use candle_nn::{Linear, Module};
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::{distance, random, randomise, same_bits};

use crate::{keys, refusal, texts};

#[derive(Clone, Injectable)]
struct Model {
    first: Adapted<Linear>,
    #[peft(blocks)]
    layers: Vec<Block>,
}

#[derive(Clone, Injectable)]
struct Block {
    lin: Adapted<Linear>,
}

const SIZE: usize = 4;

fn linear() -> Adapted<Linear> {
    Linear::new(random(&[SIZE, SIZE]), Some(random(&[SIZE]))).into()
}

fn model() -> Model {
    Model { first: linear(), layers: (0..3).map(|_| Block { lin: linear() }).collect() }
}

impl Model {
    fn forward(&self, x: &Tensor) -> Tensor {
        self.layers.iter().fold(self.first.forward(x).unwrap(), |x, block| {
            (&x + block.lin.forward(&x).unwrap().tanh().unwrap()).unwrap()
        })
    }

    /// What a model with only these blocks would compute.
    fn forward_through(&self, order: &[usize], x: &Tensor) -> Tensor {
        let layers = order.iter().map(|number| self.layers[*number].clone()).collect();
        Self { first: self.first.clone(), layers }.forward(x)
    }
}

fn lora() -> LoraConfig {
    LoraConfig::new(1, 2.0).with_targets(["lin"]).with_layer_replication([0..2, 1..3])
}

#[test]
fn the_list_of_blocks_becomes_the_ranges_one_after_the_other() {
    let base = model();
    let mut model = base.clone();
    let x = random(&[5, SIZE]);
    let report = model.inject_adapter(&lora(), "a").unwrap();
    let adapted = texts(&report.adapted);
    assert_eq!(adapted, ["layers.0.lin", "layers.1.lin", "layers.2.lin", "layers.3.lin"]);
    assert_eq!(model.layers.len(), 4);
    // A fresh adapter does not change what the four blocks compute.
    assert!(same_bits(&model.forward(&x), &base.forward_through(&[0, 1, 1, 2], &x)));
    let (before, after) = (base.base_state_dict(), model.base_state_dict());
    for (new, old) in [0, 1, 1, 2].into_iter().enumerate() {
        let weight = |layer: usize| format!("layers.{layer}.lin.weight");
        assert!(same_bits(&after[&weight(new)], &before[&weight(old)]), "{new} is {old}");
    }
}

#[test]
fn copies_share_their_base_weights_and_have_adapters_of_their_own() {
    let mut model = model();
    let x = random(&[5, SIZE]);
    model.inject_adapter(&lora(), "a").unwrap();
    // Four linear layers of the base, three of them blocks; four pairs of factors.
    let (base, adapters) = (4 * (SIZE * SIZE + SIZE), 4 * 2 * SIZE);
    let percentage = 100.0 * adapters as f64 / (base + adapters) as f64;
    assert_eq!(
        model.trainable_summary(),
        format!(
            "trainable params: {adapters} || all params: {} || trainable%: {percentage:.4}",
            base + adapters
        )
    );
    randomise(&mut model, "a", 0.5).unwrap();
    let state = model.adapter_state_dict("a").unwrap();
    assert_eq!(state.len(), 8);
    let b = |layer: usize| &state[&format!("base_model.model.layers.{layer}.lin.lora_B.weight")];
    assert!(!same_bits(b(1), b(2)));
    let outputs = [1, 2].map(|block: usize| model.layers[block].lin.forward(&x).unwrap());
    assert!(distance(&outputs[0], &outputs[1]).unwrap() > 0.01, "one base, two adapters");
}

#[test]
fn gradients_reach_every_copy() {
    let mut model = model();
    model.inject_adapter(&lora(), "a").unwrap();
    randomise(&mut model, "a", 0.5).unwrap();
    let grads = model.forward(&random(&[5, SIZE])).sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let parameters = model.trainable_parameters();
    assert_eq!(parameters.len(), 8);
    assert!(parameters.iter().all(|(_, var)| grads.get(var).is_some()));
}

#[test]
fn loading_repeats_it_on_a_fresh_base() {
    let base = model();
    let mut model = base.clone();
    let x = random(&[5, SIZE]);
    model.inject_adapter(&lora(), "default").unwrap();
    randomise(&mut model, "default", 0.5).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "default").unwrap();
    let config = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["layer_replication"], serde_json::json!([[0, 2], [1, 3]]));
    assert_eq!(keys(&model, "default")[4], "layers.2.lin.lora_A.weight");
    let mut other = base;
    let report = other.load_adapter(folder.path(), "default").unwrap();
    assert_eq!((report.injection.adapted.len(), other.layers.len()), (4, 4));
    assert!(same_bits(&other.forward(&x), &model.forward(&x)));
}

#[test]
fn a_second_adapter_with_the_same_ranges_finds_the_blocks_as_they_are() {
    let mut model = model();
    let x = random(&[5, SIZE]);
    model.inject_adapter(&lora(), "a").unwrap();
    let before = model.forward(&x);
    model.inject_adapter(&lora(), "b").unwrap();
    assert_eq!(model.layers.len(), 4);
    assert!(same_bits(&model.forward(&x), &before));
    // So does one from a file, and one that does not mention blocks.
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "b").unwrap();
    model.delete_adapter("b").unwrap();
    model.load_adapter(folder.path(), "b").unwrap();
    model.inject_adapter(&LoraConfig::new(1, 2.0).with_targets(["layers.3.lin"]), "c").unwrap();
    assert_eq!(model.layers.len(), 4);
}

#[test]
fn merging_adds_to_each_copy_what_is_its_own() {
    let mut model = model();
    let x = random(&[5, SIZE]);
    model.inject_adapter(&lora(), "a").unwrap();
    randomise(&mut model, "a", 0.5).unwrap();
    let output = model.forward(&x);
    model.merge_adapters(&MergeOptions::active()).unwrap();
    assert_close(&model.forward(&x), &output, Tolerance::absolute(1e-4), "the output");
    model.unmerge_adapters().unwrap();
    assert!(same_bits(&model.forward(&x), &output));
}

#[test]
fn adalora_repeats_blocks_as_well() {
    let mut model = model();
    let config = AdaLoraConfig::new(2, 1, 10).with_targets(["lin"]).with_layer_replication([0..1, 0..3]);
    let report = model.inject_adapter(&config, "a").unwrap();
    assert_eq!((report.adapted.len(), model.layers.len()), (4, 4));
}

#[test]
fn impossible_ranges_are_refused_and_change_nothing() {
    let config = |ranges: &[(usize, usize)]| {
        let ranges = ranges.iter().map(|(start, end)| *start..*end);
        LoraConfig::new(1, 2.0).with_targets(["lin"]).with_layer_replication(ranges)
    };
    for (ranges, says) in [
        ([(0, 2), (1, 4)], "the range 1..4 exceeds `layers`, which has 3 blocks"),
        ([(0, 2), (2, 2)], "the range 2..2 holds no block"),
        ([(2, 1), (0, 1)], "the range 2..1 holds no block"),
    ] {
        let text = refusal(&mut model(), &config(&ranges));
        assert!(text.contains("layer_replication") && text.contains(says), "`{says}` is not in: {text}");
    }
    // A fault that is found later does not change the list either.
    let text = refusal(&mut model(), &lora().with_targets(["lni"]));
    assert!(text.contains("did you mean `lin`?"), "{text}");
    let mut replicated = model();
    replicated.inject_adapter(&lora(), "a").unwrap();
    let text = refusal(&mut replicated, &config(&[(0, 1)]));
    assert!(text.contains("adapter `a` rules this out"), "other ranges: {text}");
}

#[test]
fn a_model_that_marks_no_list_says_how_to_mark_one() {
    #[derive(Clone, Injectable)]
    struct Unmarked {
        layers: Vec<Block>,
    }
    let mut model = Unmarked { layers: vec![Block { lin: linear() }] };
    let text = refusal(&mut model, &lora());
    assert!(text.contains("`#[peft(blocks)]`"), "{text}");
}

#[test]
fn an_error_in_a_repeated_block_names_the_block_that_it_became() {
    let mut model = model();
    model.inject_adapter(&lora(), "a").unwrap();
    for (number, block) in model.layers.iter().enumerate() {
        let error = block.lin.forward(&random(&[5, SIZE + 1])).unwrap_err().to_string();
        assert!(error.contains(&format!("on `layers.{number}.lin`")), "{number}: {error}");
    }
}
