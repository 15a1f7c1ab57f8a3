//! Why the tensors of a state dict cannot be read as those of an adapter, whatever the model.

use super::words;

/// Keys or shapes of a state dict that are not those of one adapter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateDictError {
    /// Two keys, with and without PEFT's prefix for example, mean the same tensor.
    #[error(
        "`{}` and `{}` are one tensor under two names; keep one of them",
        words::shortened(.first),
        words::shortened(.second)
    )]
    DuplicateKey {
        /// The key that comes first.
        first: String,
        /// The other one.
        second: String,
    },

    /// Keys have the names of different adapters in them.
    #[error(
        "`{}` is of the adapter `{}` and `{}` of `{}`; keep the keys of one of them",
        words::shortened(.first),
        words::shortened(&.names[0]),
        words::shortened(.second),
        words::shortened(&.names[1])
    )]
    SeveralAdapters {
        /// The key that comes first.
        first: String,
        /// The first one with another name.
        second: String,
        /// The two names.
        names: [String; 2],
    },

    /// No key belongs to the adapter's method.
    #[error("no key has `{marker}` in it, as the adapter's tensors do; {}", words::first_key(.first))]
    NoAdapterKeys {
        /// What every key of the method has before the name of its tensor.
        marker: String,
        /// The first key of the state dict.
        first: Option<String>,
    },

    /// The tensors of a layer do not form an adapter.
    #[error("`{path}` has {}, which do not form an adapter of {method}", words::tensors(.tensors))]
    NoAdapter {
        /// The layer.
        path: String,
        /// The adapter's method.
        method: &'static str,
        /// The ends of the layer's keys, with the shapes of their tensors.
        tensors: Vec<(String, Vec<usize>)>,
    },

    /// The tensors of a layer have a larger rank than the config allows.
    #[error("the tensors of `{path}` have rank {rank}, and `{field}` is {most}; it must be at least {rank}")]
    RankOverConfig {
        /// The layer.
        path: String,
        /// The rank of its tensors.
        rank: usize,
        /// The field's name in `adapter_config.json`.
        field: &'static str,
        /// Its value.
        most: usize,
    },
}
