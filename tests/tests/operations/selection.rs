//! Which modules a config selects if it names none, and the rarer ways to name them.

use candle_nn::Linear;
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::error::Fault;
use peft_runtime::prelude::*;
use peft_runtime::{Error, InjectionReport};

use crate::{Model, linear, texts};

/// The layers of a Llama block that PEFT's tables name, and one that they do not.
#[derive(Clone, Injectable)]
#[peft(model_type = "llama")]
struct Llama {
    layers: Vec<Block>,
}

#[derive(Clone, Injectable)]
struct Block {
    q_proj: Adapted<Linear>,
    k_proj: Adapted<Linear>,
    v_proj: Adapted<Linear>,
    o_proj: Adapted<Linear>,
    down_proj: Adapted<Linear>,
}

fn block() -> Block {
    let square = || linear(4, 4);
    Block { q_proj: square(), k_proj: square(), v_proj: square(), o_proj: square(), down_proj: linear(6, 4) }
}

fn llama() -> Llama {
    Llama { layers: vec![block()] }
}

/// The last names of the layers that get the adapter.
fn adapted(config: &dyn AdapterMethod) -> Vec<String> {
    let report = llama().inject_adapter(config, "a").unwrap();
    report.adapted.iter().map(|path| path.last().to_owned()).collect()
}

#[test]
fn targets_are_looked_up_by_the_models_type() {
    assert_eq!(adapted(&LoraConfig::new(2, 4.0)), ["q_proj", "v_proj"]);
    assert_eq!(adapted(&AdaLoraConfig::new(2, 1, 10)), ["q_proj", "v_proj"]);
    assert_eq!(adapted(&Ia3Config::new()), ["k_proj", "v_proj", "down_proj"]);
}

#[test]
fn ia3_scales_the_inputs_of_the_feed_forward_layers_that_the_type_is_known_for() {
    let mut model = llama();
    model.inject_adapter(&Ia3Config::new(), "a").unwrap();
    let state = model.adapter_state_dict("a").unwrap();
    assert_eq!(state["base_model.model.layers.0.k_proj.ia3_l"].dims(), [4, 1]);
    assert_eq!(state["base_model.model.layers.0.down_proj.ia3_l"].dims(), [1, 6]);
}

#[test]
fn what_the_config_names_itself_is_not_looked_up() {
    assert_eq!(adapted(&LoraConfig::new(2, 4.0).with_targets(["o_proj"])), ["o_proj"]);
    // The known feed-forward layers are none of these targets.
    assert_eq!(adapted(&Ia3Config::new().with_targets(["k_proj"])), ["k_proj"]);
    let mut model = llama();
    model.inject_adapter(&Ia3Config::new().with_targets(["k_proj", "down_proj"]), "a").unwrap();
    let state = model.adapter_state_dict("a").unwrap();
    assert_eq!(state["base_model.model.layers.0.down_proj.ia3_l"].dims(), [1, 6]);
}

#[test]
fn what_the_model_declares_comes_before_what_its_type_is_known_for() {
    #[derive(Injectable)]
    #[peft(model_type = "llama", target = ["o_proj", "down_proj"], feedforward = "down_proj")]
    struct Declared {
        block: Block,
    }
    let declared = |config: &dyn AdapterMethod| {
        let mut model = Declared { block: block() };
        let report = model.inject_adapter(config, "a").unwrap();
        let names: Vec<String> = report.adapted.iter().map(|path| path.last().to_owned()).collect();
        (names, model.adapter_state_dict("a").unwrap())
    };
    assert_eq!(declared(&LoraConfig::new(2, 4.0)).0, ["o_proj", "down_proj"]);
    let (names, state) = declared(&Ia3Config::new());
    assert_eq!(names, ["o_proj", "down_proj"]);
    assert_eq!(state["base_model.model.block.down_proj.ia3_l"].dims(), [1, 6]);
    assert_eq!(declared(&Ia3Config::new().with_targets(["o_proj"])).0, ["o_proj"]);
}

#[test]
fn a_model_of_an_unknown_type_needs_names() {
    let faults = |config: &dyn AdapterMethod| match Model::new().inject_adapter(config, "a").unwrap_err() {
        Error::Plan { faults, .. } => faults,
        other => panic!("{other}"),
    };
    assert_eq!(faults(&LoraConfig::new(2, 4.0)), [Fault::NoTargets]);
    assert_eq!(faults(&AdaLoraConfig::new(2, 1, 10)), [Fault::NoTargets]);
    let text = faults(&Ia3Config::new().with_targets(["head"]))[0].to_string();
    assert!(text.contains("feedforward_modules") && text.contains("not named"), "{text}");
}

fn two_blocks(config: &LoraConfig) -> InjectionReport {
    Llama { layers: vec![block(), block()] }.inject_adapter(config, "a").unwrap()
}

#[test]
fn a_block_pattern_may_have_groups_of_its_own() {
    let config = LoraConfig::new(2, 4.0).with_targets(["q_proj"]).with_layers_to_transform([1]);
    for pattern in ["layers", "(layers|h)", "(l)(ayers)"] {
        let report = two_blocks(&config.clone().with_layers_pattern([pattern]));
        assert_eq!(texts(&report.adapted), ["layers.1.q_proj"], "{pattern}");
    }
}

#[test]
fn excluding_all_linear_has_no_effect_in_a_file_and_is_refused_from_a_caller() {
    let config = LoraConfig::new(2, 4.0).with_targets(["head"]);
    let folder = tempfile::tempdir().unwrap();
    Model::new().with(&config, "default").save_pretrained(folder.path(), "default").unwrap();
    let path = folder.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let excluding = text.replace(r#""exclude_modules": null"#, r#""exclude_modules": "all-linear""#);
    assert_ne!(text, excluding);
    std::fs::write(&path, excluding).unwrap();
    // PEFT reads it as a pattern, which matches nothing.
    let report = Model::new().load_adapter(folder.path(), "default").unwrap();
    assert_eq!(texts(&report.injection.adapted), ["head"]);
    let refused = config.with_exclude_modules(TargetModules::all_linear());
    let error = Model::new().inject_adapter(&refused, "a").unwrap_err().to_string();
    assert!(error.contains("exclude_modules") && error.contains("name the modules"), "{error}");
}

#[test]
fn a_sum_of_adapters_with_layer_filters_covers_only_their_layers() {
    // Of two layers called `lin`, the first adapter is on the one whose name is the end of the other's path.
    let filtered = LoraConfig::new(2, 4.0).with_targets(["lin"]).with_exclude_modules(["block.lin"]);
    let mut model = Model::new().with(&filtered, "a");
    model.add(&LoraConfig::new(2, 4.0).with_targets(["head"]), "b");
    let options = CombineOptions::new(CombinationType::Cat);
    let report = model.add_weighted_adapter(&[("a", 1.0), ("b", 1.0)], "sum", &options).unwrap();
    assert_eq!(texts(&report.adapted), ["lin", "head"]);
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "sum").unwrap();
    let report = Model::new().load_adapter(folder.path(), "sum").unwrap();
    assert_eq!(texts(&report.injection.adapted), ["lin", "head"]);
}
