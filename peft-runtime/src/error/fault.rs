//! What can be wrong with an injection, found before anything is touched.

use std::fmt::Write as _;

use crate::ModulePath;

/// One reason why an injection is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The adapter has no usable name.
    #[error("`{name}` is no adapter name: {reason}")]
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

    /// The config holds a value that its method cannot have.
    #[error("invalid `{field}`: {reason}")]
    Config {
        /// The field under its name in `adapter_config.json`.
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

    /// A target name is the name of no layer.
    #[error("target `{target}` matches no module{}", suggestion(.nearest))]
    UnmatchedTarget {
        /// The target as written.
        target: String,
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
        /// The field under its name in `adapter_config.json`.
        field: &'static str,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
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
    #[error("rank {rank} is over the dimensions of `{path}`, which holds {weights} weights ({shape:?})")]
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

    /// Single tokens or parameters cannot be trained as the config says.
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

/// How to make a plain layer one that carries adapters.
fn advice(kind: &str, can_be_adapted: bool) -> String {
    if can_be_adapted { format!("; declare the field as `Adapted<{kind}>`") } else { String::new() }
}

/// `; did you mean …?`, or nothing.
fn suggestion(nearest: &[String]) -> String {
    match nearest {
        [] => String::new(),
        names => format!("; did you mean {}?", join(names, " or ")),
    }
}

pub(super) fn known_names(known: &[String]) -> String {
    match known {
        [] => "; the model has no adapters".to_owned(),
        names => format!("; the model has {}", quoted_list(names)),
    }
}

pub(super) fn quoted_list(names: &[String]) -> String {
    join(names, " and ")
}

fn join(names: &[String], last: &str) -> String {
    let mut text = String::new();
    for (i, name) in names.iter().enumerate() {
        let separator = match i {
            0 => "",
            _ if i + 1 == names.len() => last,
            _ => ", ",
        };
        let _ = write!(text, "{separator}`{name}`");
    }
    text
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
