//! What can be wrong with an injection, found before anything is touched.

use std::fmt::Write as _;

use super::words::suggestion;
use crate::path::ModulePath;
use crate::schema::LayerKind;

/// One reason why an injection is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The adapter has no usable name.
    #[error("`{name}` is not an adapter name: {reason}")]
    Name {
        /// The name.
        name: String,
        /// Why it cannot be one.
        reason: &'static str,
    },

    /// The model has an adapter of that name already.
    #[error("the model already has an adapter named `{name}`; delete it first or choose another name")]
    DuplicateName {
        /// The name.
        name: String,
    },

    /// The config holds a value that its method does not allow.
    #[error("invalid `{field}`: {reason}")]
    Config {
        /// The field's name in `adapter_config.json`.
        field: &'static str,
        /// What is wrong with its value.
        reason: String,
    },

    /// Neither the config nor the model names target modules.
    #[error(
        "no target modules are given, and the model declares none; add `with_targets(…)` to the config or \
         `#[peft(target = \"…\")]` to the model"
    )]
    NoTargets,

    /// A target name matches no layer.
    #[error("target `{target}` matches no module{}", suggestion(.nearest))]
    UnmatchedTarget {
        /// The target as written.
        target: String,
        /// Similar names.
        nearest: Vec<String>,
    },

    /// A pattern for single layers matches no adapted layer, or an exclusion no module.
    #[error("`{field}` holds `{pattern}`, which matches nothing{}", suggestion(.nearest))]
    UnmatchedPattern {
        /// The field under its name in `adapter_config.json`.
        field: &'static str,
        /// The pattern as written.
        pattern: String,
        /// Names that are near to it.
        nearest: Vec<String>,
    },

    /// Nothing is left to adapt.
    #[error("no module is left to adapt: {reason}")]
    NothingMatched {
        /// Which part of the selection ruled the modules out.
        reason: String,
    },

    /// A pattern is not a regular expression, or takes too long to match.
    #[error("`{field}` holds the pattern `{pattern}`, which {reason}")]
    Pattern {
        /// The field's name in `adapter_config.json`.
        field: &'static str,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },

    /// Two patterns match one module with different values, and only their order decides.
    #[error(
        "in `{field}`, `{first}` and `{second}` both match `{path}` with different values, and a saved file, whose keys are \
         sorted, would let the other one win"
    )]
    AmbiguousPattern {
        /// The field's name in `adapter_config.json`.
        field: &'static str,
        /// The module.
        path: String,
        /// The pattern that comes first as written.
        first: String,
        /// The pattern that comes first when sorted.
        second: String,
    },

    /// The IA3 config does not say which of its targets are feed-forward layers.
    #[error(
        "the feed-forward layers are not named in `feedforward_modules`; name them with `with_feedforward([…])`, \
         or pass an empty list if there are none"
    )]
    NoFeedforward,

    /// Blocks are to be repeated in a model that does not have exactly one list of blocks.
    #[error("`layer_replication` cannot repeat blocks: {}", block_lists(*.lists))]
    BlockLists {
        /// How many lists of blocks the model marks.
        lists: usize,
    },

    /// A range of blocks to repeat ends after the last block.
    #[error("in `layer_replication`, the range {start}..{end} exceeds `{path}`, which has {blocks} blocks")]
    ReplicatedRange {
        /// The number of the range's first block.
        start: usize,
        /// One more than the number of its last block.
        end: usize,
        /// The list of blocks.
        path: ModulePath,
        /// Its length.
        blocks: usize,
    },

    /// A selected layer is not wrapped in `Adapted`.
    #[error("`{path}` is a plain `{kind}` and cannot carry an adapter{}", advice(.kind, *.can_be_adapted))]
    PlainLayer {
        /// The layer.
        path: ModulePath,
        /// Its type.
        kind: &'static str,
        /// Whether wrapping it would help.
        can_be_adapted: bool,
    },

    /// The method does not work on a selected layer.
    #[error("{method} cannot adapt `{path}` ({kind}): {reason}")]
    UnsupportedLayer {
        /// The layer.
        path: ModulePath,
        /// Its kind.
        kind: &'static str,
        /// The adapter method.
        method: &'static str,
        /// Why not.
        reason: String,
    },

    /// The rank is larger than the number of weights of the layer.
    #[error("rank {rank} is too large for `{path}`, which holds {weights} weights ({shape:?})")]
    RankOverDimensions {
        /// The layer.
        path: ModulePath,
        /// The rank.
        rank: usize,
        /// The number of weights of the layer.
        weights: usize,
        /// The shape of its weight.
        shape: Vec<usize>,
    },

    /// A module that `modules_to_save` names cannot be copied.
    #[error("`modules_to_save` names `{path}`, {reason}")]
    ModuleToSave {
        /// The module, or the entry that matches none.
        path: ModulePath,
        /// Why it cannot be trained in full.
        reason: String,
    },

    /// Individual tokens or parameters cannot be trained as the config specifies.
    #[error("cannot adapt `{path}`: {reason}")]
    Tokens {
        /// The layer or parameter.
        path: ModulePath,
        /// Why not.
        reason: String,
    },

    /// Another adapter of the model rules this one out.
    #[error("adapter `{other}` rules this out: {reason}")]
    Conflict {
        /// The adapter that is there already.
        other: String,
        /// Why the two exclude each other.
        reason: String,
    },
}

impl Fault {
    /// A method that does not work on the layer at `path`.
    pub fn unsupported_layer(
        path: &ModulePath,
        kind: LayerKind,
        method: &'static str,
        reason: impl Into<String>,
    ) -> Self {
        Self::UnsupportedLayer { path: path.clone(), kind: kind.name, method, reason: reason.into() }
    }
}

/// How to turn a plain layer into one that carries adapters.
fn advice(kind: &str, can_be_adapted: bool) -> String {
    if can_be_adapted { format!("; declare the field as `Adapted<{kind}>`") } else { String::new() }
}

/// Why a model with this many lists of blocks cannot repeat blocks.
fn block_lists(lists: usize) -> String {
    match lists {
        0 => "the model marks no list of blocks; put `#[peft(blocks)]` on the `Vec` of blocks".to_owned(),
        many => format!("the model marks {many} lists of blocks, and only one can be replicated"),
    }
}

/// One fault stays on the line; several get a line each.
pub(super) fn bullet_list(faults: &[Fault]) -> String {
    match faults {
        [fault] => format!(": {fault}"),
        faults => {
            let mut text = format!(", {} faults:", faults.len());
            for fault in faults {
                let _ = write!(text, "\n  - {fault}");
            }
            text
        }
    }
}
