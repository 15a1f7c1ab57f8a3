//! An adapter as its two files have it.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::{Map, Value};

/// The fields of the config, and the tensors under PEFT's keys without the prefix.
pub(super) struct Written {
    pub(super) config: Map<String, Value>,
    pub(super) tensors: BTreeMap<String, Tensor>,
}
