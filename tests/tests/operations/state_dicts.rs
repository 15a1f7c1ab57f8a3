//! Adapters injected from a state dict, and the base model's own state dict.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Embedding, Linear};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;
use peft_runtime::{Error, InjectionReport, StoredAdapter};
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::fingerprint::Fingerprint;
use peft_tests::tensors::{random, same_bits};

use crate::{Model, lora, texts};

type State = BTreeMap<String, Tensor>;

/// The state dict of an acting adapter, and what the model computes with it.
fn source(base: &Model, config: &dyn AdapterMethod, x: &Tensor) -> (State, Tensor) {
    let model = base.with(config, "source");
    (model.adapter_state_dict("source").unwrap(), model.forward(x))
}

/// The base model with an adapter injected from the state dict.
fn injected(base: &Model, state: &State, config: &dyn AdapterMethod) -> (Model, InjectionReport) {
    let mut model = base.clone();
    let report = model.inject_adapter_from_state_dict(state, config, "x").unwrap();
    (model, report)
}

/// Checks that `config`, which names no layers and no ranks, gives the same adapter from the keys of the state dict.
fn reads_off(full: &dyn AdapterMethod, config: &dyn AdapterMethod, adapted: &[&str]) -> Model {
    let (base, x) = (Model::new(), Model::input());
    let (state, output) = source(&base, full, &x);
    let (model, report) = injected(&base, &state, config);
    assert_eq!(texts(&report.adapted), adapted);
    assert_close(&model.forward(&x), &output, Tolerance::absolute(1e-5), "the output");
    let again = model.adapter_state_dict("x").unwrap();
    assert!(state.keys().eq(again.keys()));
    assert!(state.iter().all(|(key, tensor)| same_bits(tensor, &again[key])));
    model
}

#[test]
fn targets_and_ranks_are_read_off_the_keys_and_the_rest_comes_from_the_config() {
    let full = LoraConfig::new(2, 8.0).with_targets(["out", "head"]).with_rank_pattern([("head", 3)]);
    let model = reads_off(&full, &LoraConfig::new(99, 8.0), &["block.out", "head"]);
    assert!(!model.trainable_parameters().is_empty(), "it can be trained further");
    // What is saved can be loaded, with both ranks.
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "x").unwrap();
    let mut other = model.clone();
    other.delete_adapter("x").unwrap();
    other.load_adapter(folder.path(), "x").unwrap();
    let x = Model::input();
    assert!(same_bits(&other.forward(&x), &model.forward(&x)));
}

#[test]
fn one_tensor_under_two_names_is_an_error_that_gives_both() {
    let mut model = Model::new().with(&lora(), "x");
    let mut state = model.adapter_state_dict("x").unwrap();
    let long = "base_model.model.head.lora_A.weight";
    let short = "head.lora_A.weight";
    state.insert(short.to_owned(), state[long].clone());
    let errors = [
        model.load_adapter_state_dict(&state, "x").unwrap_err(),
        model.inject_adapter_from_state_dict(&state, &lora(), "y").unwrap_err(),
        StoredAdapter::new("x", lora(), state).unwrap_err(),
    ];
    for error in errors.map(|error| error.to_string()) {
        assert!(error.contains(&format!("`{long}` and `{short}`")), "{error}");
    }
}

#[test]
fn alpha_comes_from_the_config() {
    let (base, x) = (Model::new(), Model::input());
    let (state, _) = source(&base, &lora(), &x);
    let (model, _) = injected(&base, &state, &LoraConfig::new(8, 12.0));
    let mut tripled = base.with(&lora(), "tripled");
    tripled.load_adapter_state_dict(&state, "tripled").unwrap();
    tripled.scale_adapter("tripled", 3.0).unwrap();
    assert_close(&model.forward(&x), &tripled.forward(&x), Tolerance::absolute(1e-5), "the output");
}

#[test]
fn keys_may_have_the_prefix_or_not() {
    let (base, x) = (Model::new(), Model::input());
    let (state, output) = source(&base, &lora(), &x);
    let bare =
        |(key, tensor): (String, Tensor)| (key.strip_prefix("base_model.model.").unwrap().to_owned(), tensor);
    let (model, _) = injected(&base, &state.into_iter().map(bare).collect(), &lora());
    assert!(same_bits(&model.forward(&x), &output));
}

#[test]
fn a_layer_is_selected_without_the_one_whose_path_ends_in_its_name() {
    let full = LoraConfig::new(2, 4.0).with_targets(TargetModules::regex("lin"));
    let model = reads_off(&full, &LoraConfig::new(2, 4.0), &["lin"]);
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "x").unwrap();
    let mut other = Model::new();
    let report = other.load_adapter(folder.path(), "x").unwrap();
    assert_eq!(texts(&report.injection.adapted), ["lin"], "the saved config also selects only that layer");
}

#[test]
fn biases_that_train_do_not_make_copies_of_their_layers() {
    let full = lora().with_bias(Bias::All);
    let model = reads_off(&full, &LoraConfig::new(2, 4.0).with_bias(Bias::All), &["block.out", "head"]);
    assert!(!model.module_tree().contains("ModulesToSaveWrapper"));
}

#[test]
fn modules_that_train_in_full_are_read_off_the_keys_too() {
    let full = lora().with_targets(["out"]).with_modules_to_save(["norm", "head"]);
    let model = reads_off(&full, &LoraConfig::new(2, 4.0), &["block.out"]);
    assert_eq!(model.adapter_config("x").unwrap().selection().modules_to_save, ["head", "norm"]);
}

#[test]
fn dora_and_biases_of_b_are_read_off_the_keys() {
    let dora = reads_off(&lora().with_dora(true), &LoraConfig::new(2, 4.0), &["block.out", "head"]);
    assert!(dora.adapter_config("x").unwrap().downcast_ref::<LoraConfig>().unwrap().use_dora());
    let biased = reads_off(&lora().with_lora_bias(true), &LoraConfig::new(2, 4.0), &["block.out", "head"]);
    assert!(biased.adapter_config("x").unwrap().downcast_ref::<LoraConfig>().unwrap().lora_bias());
}

#[test]
fn ia3_and_adalora_are_read_off_their_keys() {
    let full = Ia3Config::new().with_targets(["out", "head"]).with_feedforward(["head"]);
    reads_off(&full, &Ia3Config::new().with_feedforward(["head"]), &["block.out", "head"]);
    let adalora = AdaLoraConfig::new(4, 2, 10).with_alpha(16.0);
    reads_off(&adalora.clone().with_targets(["out", "head"]), &adalora, &["block.out", "head"]);
}

#[test]
fn loha_and_lokr_are_read_off_their_keys() {
    let loha = LohaConfig::new(2, 4.0);
    reads_off(&loha.clone().with_targets(["out", "head"]), &loha, &["block.out", "head"]);
    // Of `block.lin`, W₁ and W₂ are whole, and of the others W₂ is a product.
    let lokr = LokrConfig::new(1, 2.0);
    let targets = ["block.lin", "out", "head"];
    reads_off(&lokr.clone().with_targets(targets), &lokr, &["block.lin", "block.out", "head"]);
}

#[test]
fn feed_forward_layers_may_be_named_by_the_ends_of_their_paths() {
    let full = Ia3Config::new().with_targets(["out", "head"]).with_feedforward(["out"]);
    reads_off(&full, &Ia3Config::new().with_feedforward(["out"]), &["block.out", "head"]);
}

#[test]
fn an_adalora_state_with_fewer_rows_is_one_whose_ranks_were_cut() {
    let (base, x) = (Model::new(), Model::input());
    let config = AdaLoraConfig::new(4, 2, 10).with_alpha(16.0);
    let mut whole = base.with(&config.clone().with_targets(["out", "head"]), "whole");
    let mut state = whole.adapter_state_dict("whole").unwrap();
    // The last two ranks of every layer do nothing …
    let keeps = Tensor::new(&[[1f32], [1.], [0.], [0.]], &Device::Cpu).unwrap();
    for (_, e) in state.iter_mut().filter(|(key, _)| key.ends_with("lora_E")) {
        *e = (&*e * &keeps).unwrap();
    }
    whole.load_adapter_state_dict(&state, "whole").unwrap();
    // … and are left out.
    let cut = |(key, tensor): (String, Tensor)| {
        let axis = usize::from(key.ends_with("lora_B"));
        let tensor = tensor.narrow(axis, 0, 2).unwrap().contiguous().unwrap();
        (key, tensor)
    };
    let (model, _) = injected(&base, &state.into_iter().map(cut).collect(), &config);
    assert_close(&model.forward(&x), &whole.forward(&x), Tolerance::absolute(1e-5), "the output");
}

#[test]
fn keys_that_belong_to_nothing_are_refused_and_change_nothing() {
    let (base, x) = (Model::new(), Model::input());
    let (state, _) = source(&base, &lora(), &x);
    let mut foreign = state.clone();
    foreign.insert("base_model.model.nowhere.lora_A.weight".to_owned(), random(&[2, 5]));
    let mut half = state.clone();
    half.remove("base_model.model.head.lora_B.weight").unwrap();
    let mut misshapen = state;
    misshapen.insert("base_model.model.head.lora_B.weight".to_owned(), random(&[4, 2]));
    let none = State::from([("head.weight".to_owned(), random(&[3, 7]))]);
    let cases = [
        (foreign, "nowhere.lora_A.weight"),
        (half, "missing: `head.lora_B.weight`"),
        (misshapen, "`head.lora_B.weight` has shape [4, 2], expected [3, 2]"),
        (none, "no key has `.lora_` in it"),
    ];
    for (state, says) in cases {
        let mut model = base.clone();
        let before = Fingerprint::of(&model).unwrap();
        let error = model.inject_adapter_from_state_dict(&state, &lora(), "x").unwrap_err();
        assert!(error.to_string().contains(says), "{says}: {error}");
        assert_eq!(before.changes(&Fingerprint::of(&model).unwrap()), Vec::<String>::new());
    }
}

#[test]
fn the_base_has_the_same_names_and_bits_whatever_adapters_do() {
    let mut model = Model::new();
    let before = model.base_state_dict();
    assert!(before.contains_key("block.lin.bias") && before.contains_key("norm.weight"));
    let is_same = |model: &Model| {
        let now = model.base_state_dict();
        before.keys().eq(now.keys()) && before.iter().all(|(key, tensor)| same_bits(tensor, &now[key]))
    };
    model.add(&lora().with_modules_to_save(["norm"]), "a");
    assert!(is_same(&model));
    model.merge_adapters(&MergeOptions::active()).unwrap();
    assert!(is_same(&model));
    assert!(!same_bits(&model.merged_state_dict()["head.weight"], &before["head.weight"]));
}

#[test]
fn base_weights_can_be_replaced_under_an_adapter() {
    let (base, other, x) = (Model::new(), Model::new(), Model::input());
    let mut model = base.with(&lora(), "a");
    let state = model.adapter_state_dict("a").unwrap();
    // Values may have any precision that holds them.
    let wide = other.base_state_dict().into_iter();
    let wide: State = wide.map(|(key, tensor)| (key, tensor.to_dtype(DType::F64).unwrap())).collect();
    model.load_base_state_dict(&wide).unwrap();
    let (mut expected, _) = injected(&other, &state, &lora());
    assert!(same_bits(&model.forward(&x), &expected.forward(&x)));
    model.disable_adapters();
    expected.disable_adapters();
    assert!(same_bits(&model.forward(&x), &other.forward(&x)));
    assert!(model.base_state_dict().values().all(|tensor| tensor.dtype() == DType::F32));
}

#[test]
fn base_weights_that_do_not_fit_are_all_named() {
    let mut model = Model::new().with(&lora(), "a");
    let before = Fingerprint::of(&model).unwrap();
    let mut state = model.base_state_dict();
    let moved = state.remove("block.lin.bias").unwrap();
    state.insert("block.lin.bais".to_owned(), moved);
    state.insert("head.weight".to_owned(), random(&[3, 8]));
    let error = model.load_base_state_dict(&state).unwrap_err();
    assert!(matches!(error, Error::BaseTensors { .. }));
    for part in [
        "missing: `block.lin.bias`",
        "unexpected: `block.lin.bais`",
        "`head.weight` has shape [3, 8], expected [3, 7]",
    ] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    assert_eq!(before.changes(&Fingerprint::of(&model).unwrap()), Vec::<String>::new());
}

#[test]
fn one_name_is_enough_for_tied_weights() {
    #[derive(Injectable)]
    struct Tied {
        embed: Adapted<Embedding>,
        head: Adapted<Linear>,
    }
    let table = random(&[7, 4]);
    let mut model =
        Tied { embed: Embedding::new(table.clone(), 4).into(), head: Linear::new(table, None).into() };
    model.inject_adapter(&LoraConfig::new(2, 2.0).with_targets(["head"]), "a").unwrap();
    let new = random(&[7, 4]);
    model.load_base_state_dict(&State::from([("embed.weight".to_owned(), new.clone())])).unwrap();
    let base = model.base_state_dict();
    assert!(same_bits(&base["embed.weight"], &new) && same_bits(&base["head.weight"], &new));
}
