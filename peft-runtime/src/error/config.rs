//! What can be wrong with an adapter config.

use super::words;
use crate::path::ModulePath;

/// A config that cannot be read, or that holds what its method cannot have.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A config holds a value that its method cannot have.
    #[error("invalid `{field}`: {reason}")]
    Invalid {
        /// The field under its name in `adapter_config.json`.
        field: &'static str,
        /// What is wrong with its value.
        reason: String,
    },

    /// A field of a config file has a value of another type than its method has there.
    #[error("`{field}` = {value} cannot be read: {reason}")]
    Unreadable {
        /// The field under its name in `adapter_config.json`.
        field: String,
        /// Its value as JSON.
        value: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A model declares no config of its own, and one was asked for.
    #[error(
        "`{model}` declares no config; add `#[peft(lora(rank = 8, alpha = 16))]` to it, or inject a config of your own"
    )]
    NotDeclared {
        /// The model's type.
        model: &'static str,
    },

    /// A method has no adapters of single tokens.
    #[error("{method} cannot train single tokens of `{path}`; LoRA's `trainable_token_indices` can")]
    NoTokenAdapters {
        /// The adapter method.
        method: &'static str,
        /// The embedding.
        path: ModulePath,
    },

    /// An adapter's start was random and changed the base weights, so that a file of it does not say what it computes.
    #[error(
        "cannot load an adapter with `init_lora_weights` = \"{init}\": its random start took a part out of the weight of \
         `{path}` that cannot be found again; save it as plain LoRA where it was trained"
    )]
    RandomStart {
        /// The init.
        init: String,
        /// The first layer with it.
        path: ModulePath,
    },

    /// A config file turns on something that is not implemented; loading it would compute something else.
    #[error("`{field}` = {value} is not supported, and ignoring it would change what the adapter computes")]
    UnsupportedSwitch {
        /// The field under its name in `adapter_config.json`.
        field: String,
        /// Its value as JSON.
        value: String,
    },

    /// A config file names a method that is not implemented.
    #[error("`peft_type` \"{peft_type}\" is not supported; supported are {}", words::quoted_list(.supported))]
    UnsupportedMethod {
        /// The method named in the file.
        peft_type: String,
        /// The methods there are.
        supported: Vec<String>,
    },

    /// A config file names no method.
    #[error(
        "it has no `peft_type`, which names the method in a config of PEFT's; supported are {}",
        words::quoted_list(.supported)
    )]
    NoMethod {
        /// The methods there are.
        supported: Vec<String>,
    },

    /// A method is registered under a `peft_type` that another one has.
    #[error("`peft_type` \"{peft_type}\" is registered for another method")]
    RegisteredMethod {
        /// The name that both have.
        peft_type: String,
    },
}
