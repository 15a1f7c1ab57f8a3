//! What formats need to know of the model that an adapter is for.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::store::standalone::BaseWeights;

/// The parameters of a base model by name, and its config.
#[derive(Debug)]
pub(in crate::store) struct Base {
    /// The shape of every parameter under its own name, `encoder.layer.0.attention.self.query.weight` for example.
    pub(in crate::store) shapes: BTreeMap<String, Vec<usize>>,
    /// Its `config.json`, where there is one.
    pub(in crate::store) config: Option<Value>,
}

impl From<&BaseWeights> for Base {
    fn from(weights: &BaseWeights) -> Self {
        Self { shapes: weights.shapes().clone(), config: weights.config().cloned() }
    }
}
