//! Every word of the attribute language, once, with the place it belongs to.

use std::fmt;

/// Where an attribute belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the struct or enum.
    Type,
    /// On a field.
    Field,
}

/// A word of the attribute language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Symbol {
    Target,
    Feedforward,
    Lora,
    ModelType,
    InputEmbedding,
    OutputEmbedding,
    Transparent,
    Bound,
    Crate,
    Rename,
    Flatten,
    Skip,
    Rank,
    Blocks,
}

/// The words inside `lora(…)`.
pub(crate) const LORA_KEYS: [&str; 5] = ["rank", "alpha", "dropout", "rslora", "bias"];

impl Symbol {
    pub(crate) const ALL: [Self; 14] = [
        Self::Target,
        Self::Feedforward,
        Self::Lora,
        Self::ModelType,
        Self::InputEmbedding,
        Self::OutputEmbedding,
        Self::Transparent,
        Self::Bound,
        Self::Crate,
        Self::Rename,
        Self::Flatten,
        Self::Skip,
        Self::Rank,
        Self::Blocks,
    ];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Target => "target",
            Self::Feedforward => "feedforward",
            Self::Lora => "lora",
            Self::ModelType => "model_type",
            Self::InputEmbedding => "input_embedding",
            Self::OutputEmbedding => "output_embedding",
            Self::Transparent => "transparent",
            Self::Bound => "bound",
            Self::Crate => "crate",
            Self::Rename => "rename",
            Self::Flatten => "flatten",
            Self::Skip => "skip",
            Self::Rank => "rank",
            Self::Blocks => "blocks",
        }
    }

    pub(crate) fn place(self) -> Place {
        match self {
            Self::Rename | Self::Flatten | Self::Skip | Self::Rank | Self::Blocks => Place::Field,
            _ => Place::Type,
        }
    }

    pub(crate) fn find(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|symbol| symbol.word() == word)
    }

    /// The words that belong to a place.
    pub(crate) fn words(place: Place) -> Vec<&'static str> {
        Self::ALL.into_iter().filter(|symbol| symbol.place() == place).map(Self::word).collect()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Type => "the type",
            Self::Field => "a field",
        })
    }
}

/// Words that people know from elsewhere, and what to write here instead.
pub(crate) fn foreign(word: &str) -> Option<&'static str> {
    Some(match word {
        "target_modules" | "targets" => "it is `target` here, or `with_targets` on a config at run time",
        "feedforward_modules" => "it is `feedforward` here",
        "r" | "lora_r" => "it is `rank` here",
        "lora_alpha" | "alpha" => "it is `lora(rank = …, alpha = …)` here",
        "ignore" => "it is `skip` here",
        "name" => "it is `rename` here",
        "modules_to_save" | "exclude_modules" => "it is set on a config at run time",
        _ => return None,
    })
}
