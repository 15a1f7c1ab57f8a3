//! What an injection refuses, and that a refused injection changes nothing.

use candle_core::{DType, Device, Tensor};
use candle_nn::{BatchNorm, Embedding, LayerNorm, Linear};
use peft_runtime::error::Fault;
use peft_runtime::prelude::*;
use peft_runtime::{Error, InjectionReport};

fn ones(shape: &[usize]) -> Tensor {
    Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()
}

fn linear(size: usize) -> Linear {
    Linear::new(ones(&[size, size]), Some(ones(&[size])))
}

#[derive(Clone, Injectable)]
struct Model {
    embed: Adapted<Embedding>,
    layers: Vec<Block>,
    norm: Adapted<LayerNorm>,
    bn: BatchNorm,
    score: Linear,
    lm_head: Adapted<Linear>,
}

#[derive(Clone, Injectable)]
struct Block {
    q_proj: Adapted<Linear>,
    v_proj: Adapted<Linear>,
}

fn model() -> Model {
    let block = || Block { q_proj: linear(4).into(), v_proj: linear(4).into() };
    Model {
        embed: Embedding::new(ones(&[5, 4]), 4).into(),
        layers: vec![block(), block(), block()],
        norm: LayerNorm::new(ones(&[4]), ones(&[4]), 1e-5).into(),
        bn: BatchNorm::new(4, ones(&[4]), ones(&[4]), ones(&[4]), ones(&[4]), 1e-5).unwrap(),
        score: linear(4),
        lm_head: linear(4).into(),
    }
}

fn lora() -> LoraConfig {
    LoraConfig::new(2, 4.0)
}

fn adapted(report: &InjectionReport) -> Vec<String> {
    report.adapted.iter().map(ToString::to_string).collect()
}

/// The faults of an injection, which must leave the model as it was.
fn faults(config: &LoraConfig, name: &str) -> Vec<Fault> {
    let mut model = model();
    let (tree, summary) = (model.module_tree(), model.trainable_summary());
    let error = model.inject_adapter(config, name).unwrap_err();
    assert_eq!((model.module_tree(), model.trainable_summary()), (tree, summary));
    match error {
        Error::Plan { faults, .. } => faults,
        other => panic!("{other}"),
    }
}

fn texts(config: &LoraConfig) -> Vec<String> {
    faults(config, "default").iter().map(ToString::to_string).collect()
}

#[test]
fn every_fault_is_reported_at_once() {
    let config =
        LoraConfig::new(0, f64::NAN).with_dropout(1.5).with_targets(["q_prj", "score", "norm", "layers"]);
    let mut model = model();
    let error = model.inject_adapter(&config, "a.b").unwrap_err();
    let text = error.to_string();
    for part in [
        "cannot inject adapter `a.b`, 8 faults:",
        "`a.b` is not an adapter name: dots separate the parts of a tensor's key",
        "invalid `r`: the rank is 0; it must be at least 1",
        "invalid `lora_alpha`: NaN is not a finite number",
        "invalid `lora_dropout`: the probability is 1.5; it must be at least 0 and below 1",
        "LORA cannot adapt `layers` (ModuleList): it is a module, not a layer",
        "LoRA cannot adapt `norm` (LayerNorm): it has no weight matrix; `modules_to_save` can train it in full",
        "`score` is a plain `Linear` and cannot carry an adapter; declare the field as `Adapted<Linear>`",
        "target `q_prj` matches no module; did you mean `q_proj`",
    ] {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
}

#[test]
fn names_that_cannot_be_part_of_keys_and_folders_are_refused() {
    for name in ["", "a.b", "../x", "a/b", "a\\b", "__base__", "tab\t", &"x".repeat(129)] {
        let faults = faults(&lora().with_targets(["q_proj"]), name);
        assert!(matches!(faults.as_slice(), [Fault::Name { .. }]), "{name}: {faults:?}");
    }
}

#[test]
fn a_config_without_targets_needs_a_model_that_declares_some() {
    assert_eq!(faults(&lora(), "default"), [Fault::NoTargets]);
}

#[test]
fn patterns_that_are_not_regular_expressions_or_match_nothing_are_refused() {
    let bad = texts(&lora().with_targets(TargetModules::regex("(q_proj")));
    assert!(
        bad[0].starts_with("`target_modules` holds the pattern `(q_proj`, which is not a regular expression")
    );
    let none = texts(&lora().with_targets(TargetModules::regex("q_proj")));
    assert_eq!(
        none,
        [
            "no module is left to adapt: no module matches the pattern `q_proj`, which has to match the whole path"
        ]
    );
    let excluded = texts(&lora().with_targets(["q_proj"]).with_exclude_modules(TargetModules::regex(".*")));
    assert!(excluded[0].contains("every module is ruled out by `exclude_modules`"), "{excluded:?}");
}

#[test]
fn a_pattern_that_backtracks_without_end_is_stopped_and_named() {
    let config = lora().with_targets(TargetModules::regex(r"(?=((\w|\.)+)+$)(\w|\w\w|\.)+\1b"));
    let faults = faults(&config, "default");
    assert!(matches!(&faults[0], Fault::Pattern { field: "target_modules", .. }), "{faults:?}");
    assert_eq!(faults.iter().filter(|fault| matches!(fault, Fault::Pattern { .. })).count(), 1);
}

#[test]
fn a_rank_beyond_the_weights_of_a_layer_is_refused() {
    let config = LoraConfig::new(17, 1.0).with_targets(["lm_head"]);
    let text = texts(&config);
    assert_eq!(text, ["rank 17 is too large for `lm_head`, which holds 16 weights ([4, 4])"]);
    assert!(model().inject_adapter(&LoraConfig::new(16, 1.0).with_targets(["lm_head"]), "default").is_ok());
}

#[test]
fn patterns_whose_order_a_file_would_not_keep_are_refused() {
    let config = lora().with_targets(["q_proj"]).with_rank_pattern([("q_proj", 1), ("layers.1.q_proj", 3)]);
    let text = texts(&config);
    assert!(text[0].contains("`q_proj` and `layers.1.q_proj` both match `layers.1.q_proj`"), "{text:?}");
    let sorted = lora().with_targets(["q_proj"]).with_rank_pattern([("layers.1.q_proj", 3), ("q_proj", 1)]);
    assert!(model().inject_adapter(&sorted, "default").is_ok());
}

#[test]
fn modules_to_save_must_be_adaptable_and_exist() {
    let plain = texts(&lora().with_targets(["q_proj"]).with_modules_to_save(["score"]));
    assert_eq!(
        plain,
        [
            "`modules_to_save` names `score`, a plain `Linear` that has no place for a copy; declare it as `Adapted<Linear>`"
        ]
    );
    let missing = texts(&lora().with_targets(["q_proj"]).with_modules_to_save(["lm_had"]));
    assert_eq!(
        missing,
        ["`modules_to_save` names `lm_had`, which matches no module; did you mean `lm_head`?"]
    );
    let never = texts(&lora().with_targets(["q_proj"]).with_modules_to_save(["bn"]));
    assert_eq!(
        never,
        ["`modules_to_save` names `bn`, a plain `BatchNorm`, which cannot be trained as a copy"]
    );
    let list = texts(&lora().with_targets(["lm_head"]).with_modules_to_save(["layers"]));
    assert_eq!(list, ["`modules_to_save` names `layers`, a list of modules; name its items instead"]);
    let whole = lora().with_targets(["lm_head"]).with_modules_to_save(["layers.1", "norm"]);
    let report = model().inject_adapter(&whole, "default").unwrap();
    let copied: Vec<String> = report.copied.iter().map(ToString::to_string).collect();
    assert_eq!(copied, ["layers.1.q_proj", "layers.1.v_proj", "norm"]);
}

#[test]
fn a_second_adapter_with_biases_is_refused() {
    let mut model = model();
    let config = lora().with_targets(["q_proj"]).with_bias(Bias::LoraOnly);
    model.inject_adapter(&config, "first").unwrap();
    let error = model.inject_adapter(&config, "second").unwrap_err();
    assert!(
        error.to_string().contains("adapter `first` rules this out: both train biases of the base model")
    );
}

#[test]
fn all_linear_takes_every_linear_layer_and_names_what_is_not_wrapped() {
    let text = texts(&lora().with_targets(TargetModules::all_linear()));
    assert_eq!(
        text,
        ["`score` is a plain `Linear` and cannot carry an adapter; declare the field as `Adapted<Linear>`"]
    );
    let config = lora().with_targets(TargetModules::all_linear()).with_exclude_modules(["score"]);
    let report = model().inject_adapter(&config, "default").unwrap();
    assert_eq!(adapted(&report).len(), 7);
}

#[test]
fn selection_follows_lists_patterns_exclusion_and_layer_filters() {
    let select = |config: LoraConfig| adapted(&model().inject_adapter(&config, "default").unwrap());
    assert_eq!(select(lora().with_targets(["layers.2.q_proj", "lm_head"])), ["layers.2.q_proj", "lm_head"]);
    assert_eq!(
        select(lora().with_targets(TargetModules::regex(r".*(?<!q)_proj|embed"))),
        ["embed", "layers.0.v_proj", "layers.1.v_proj", "layers.2.v_proj"]
    );
    let filtered =
        lora().with_targets(["q_proj"]).with_layers_to_transform([0, 2]).with_layers_pattern(["layers"]);
    assert_eq!(select(filtered), ["layers.0.q_proj", "layers.2.q_proj"]);
    let excluded = lora()
        .with_targets(["q_proj", "v_proj"])
        .with_exclude_modules(["layers.*.q_proj", "layers.0.v_proj"]);
    assert_eq!(select(excluded), ["layers.1.v_proj", "layers.2.v_proj"]);
}

#[test]
fn the_report_and_the_errors_read_as_sentences() {
    let mut model = model();
    let report = model
        .inject_adapter(&lora().with_targets(["q_proj"]).with_modules_to_save(["norm"]), "default")
        .unwrap();
    assert_eq!(
        report.to_string(),
        "adapter `default` (active): 3 layers adapted, 56 elements, 1 layer trained in full\n\
         attached to 4 layers: layers.0.q_proj, layers.1.q_proj, layers.2.q_proj, norm\n\
         acting on 4 layers: layers.0.q_proj, layers.1.q_proj, layers.2.q_proj, norm"
    );
    let report = model.inject_adapter(&lora().with_targets(["lm_head"]), "second").unwrap();
    assert!(!report.active && report.to_string().contains("(not active): 1 layer adapted, "));
    assert_eq!(
        model.set_adapter("scond").unwrap_err().to_string(),
        "no adapter named `scond`; the model has `default` and `second`"
    );
}
