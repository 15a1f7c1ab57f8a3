//! The adapter methods, with one config each, and the layer kinds they work on.

use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;

use crate::specimen::Kind;

/// A method under a law.
pub struct Method {
    /// What it is, for messages.
    pub name: &'static str,
    /// Its config, with `layer` as target.
    pub config: Box<dyn AdapterMethod>,
}

fn lora() -> LoraConfig {
    LoraConfig::new(4, 6.0).with_targets(["layer"])
}

/// All methods that work on a layer kind.
pub fn methods(kind: Kind) -> Vec<Method> {
    let mut methods: Vec<Method> = Vec::new();
    let mut add = |name, config: LoraConfig| methods.push(Method { name, config: Box::new(config) });
    add("lora", lora());
    add("lora with rank stabilisation", lora().with_rslora(true));
    add("lora with gaussian init", lora().with_init(LoraInit::Gaussian));
    add("lora with dropout", lora().with_dropout(0.3));
    if matches!(kind, Kind::Linear | Kind::Transposed | Kind::Conv1d | Kind::Conv2d) {
        add("lora with a bias", lora().with_lora_bias(true));
    }
    methods
}

/// Every method on every layer kind that it works on.
pub fn every_pair() -> Vec<(Kind, Method)> {
    Kind::ALL
        .into_iter()
        .flat_map(|kind| methods(kind).into_iter().map(move |method| (kind, method)))
        .collect()
}
