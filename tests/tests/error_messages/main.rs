//! Each kind of failure has its variant of `Error`, and a message that names what is wrong.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Embedding, Linear};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::error::{
    CombinationError, Error, Fault, OptimizerError, RoutingError, ShardsError, StateDictError,
};
use peft_runtime::models::generate::{GenerateOptions, generate};
use peft_runtime::models::llama::{LlamaConfig, LlamaModel};
use peft_runtime::prelude::*;
use peft_runtime::train::{AdamW, AdamWOptions, Optimizer, ParameterGroup, RankAllocator};
use peft_runtime::{MajoritySign, ModelWeights, StoredAdapter};
use peft_tests::tensors::{RandomWeights, random};
use serde_json::json;

#[derive(Clone, Injectable)]
struct Model {
    embed: Adapted<Embedding>,
    first: Adapted<Linear>,
    last: Adapted<Linear>,
}

fn base() -> Model {
    Model {
        embed: Embedding::new(random(&[8, 5]), 5).into(),
        first: Linear::new(random(&[6, 5]), None).into(),
        last: Linear::new(random(&[3, 6]), None).into(),
    }
}

fn lora(rank: usize) -> LoraConfig {
    LoraConfig::new(rank, 4.0).with_targets(["first", "last"])
}

/// Two LoRA adapters and one of IA3.
fn adapted() -> Model {
    let mut model = base();
    let ia3 = Ia3Config::new().with_targets(["first"]).with_feedforward(["first"]);
    model.inject_adapter(&lora(2), "a").unwrap();
    model.inject_adapter(&lora(3), "b").unwrap();
    model.inject_adapter(&ia3, "ia3").unwrap();
    model
}

fn state(keys: &[(&str, &[usize])]) -> BTreeMap<String, Tensor> {
    keys.iter().map(|(key, shape)| ((*key).to_owned(), random(*shape))).collect()
}

/// A failure: what it is, whether its variant is the right one, and what its message has to contain.
struct Failure {
    what: &'static str,
    error: Error,
    is_right: fn(&Error) -> bool,
    says: &'static [&'static str],
}

/// A failed call, the pattern of its variant, and parts of its message.
macro_rules! failure {
    ($what:literal, $error:expr, $pattern:pat, $says:expr) => {
        Failure { what: $what, error: $error, is_right: |error| matches!(error, $pattern), says: &$says }
    };
}

mod adapters;
mod files;
mod running;

fn fault(config: &LoraConfig) -> Error {
    Error::Plan { adapter: "x".to_owned(), faults: faults(config) }
}

fn faults(config: &dyn AdapterMethod) -> Vec<Fault> {
    match base().inject_adapter(config, "x").unwrap_err() {
        Error::Plan { faults, .. } => faults,
        other => panic!("{other}"),
    }
}
#[test]
fn each_kind_of_failure_has_its_variant_and_says_what_is_wrong() {
    let groups = [
        adapters::configs(),
        adapters::routings(),
        adapters::state_dicts(),
        adapters::combinations(),
        adapters::settings_of_combinations(),
        files::files(),
        running::training(),
        running::generation(),
    ];
    for Failure { what, error, is_right, says } in groups.into_iter().flatten() {
        let text = error.chain();
        assert!(is_right(&error), "{what} is a different variant: {text}");
        for part in says {
            assert!(text.contains(part), "{what}: `{part}` is not in: {text}");
        }
        assert!(text.matches("invalid").count() < 2, "{what} says `invalid` twice: {text}");
    }
}

#[test]
fn faults_of_a_config_are_told_apart() {
    let ambiguous = lora(2).with_alpha_pattern([("last", 1.0), (".*st", 3.0)]);
    assert!(
        matches!(&faults(&ambiguous)[0], Fault::AmbiguousPattern { field: "alpha_pattern", path, .. } if path == "last")
    );
    assert_eq!(faults(&lora(2).with_layer_replication([0..1, 0..1])), [Fault::BlockLists { lists: 0 }]);
    let ia3 = faults(&Ia3Config::new().with_targets(["first"]));
    assert!(ia3.iter().all(|fault| *fault == Fault::NoFeedforward) && !ia3.is_empty(), "{ia3:?}");
}

#[test]
fn a_fault_that_becomes_an_error_keeps_its_sentence() {
    let ambiguous = lora(2).with_rank_pattern([("last", 1), (".*st", 3)]);
    for fault in faults(&ambiguous).into_iter().chain(faults(&lora(0))) {
        let sentence = fault.to_string();
        let error = Error::from(fault);
        assert_eq!(
            [error.to_string(), error.chain(), format!("{error:?}")],
            [(); 3].map(|()| sentence.clone())
        );
    }
}
