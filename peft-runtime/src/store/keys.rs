//! The keys of a state dict: `base_model.model.PATH.lora_A.weight`.

use crate::error::{Error, StateDictError};

/// What PEFT's two wrapper levels put before every path.
pub(super) const PREFIX: &str = "base_model.model.";

/// The config's file name.
pub(super) const CONFIG_FILE: &str = "adapter_config.json";

/// The weights' file name.
pub(super) const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The name of the adapter that is stored in the folder itself, not in a folder of its own.
pub(super) const DEFAULT_ADAPTER: &str = "default";

/// A key as it is written in files.
pub(super) fn with_prefix(key: &str) -> String {
    format!("{PREFIX}{key}")
}

/// Two keys, with and without PEFT's prefix for example, that mean the same tensor.
pub(super) fn two_names(first: &str, second: &str) -> Error {
    StateDictError::DuplicateKey { first: first.to_owned(), second: second.to_owned() }.into()
}
