//! Why a file is not an adapter that can be read, or not one for this base model.

use super::words;

/// A file is not an adapter in a known format, or cannot be read as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterFileError {
    /// A folder has several files that may be the adapter, or none.
    #[error("{}", which_file(.files))]
    WhichFile {
        /// The names of the files.
        files: Vec<String>,
    },

    /// The names of the tensors are those of no format.
    #[error(
        "its tensors are named as in no format that is known ({}); {}; an adapter of PEFT's has `adapter_config.json` next to it",
        .known.join(", "),
        words::first_key(.first)
    )]
    UnknownNames {
        /// The first name.
        first: Option<String>,
        /// The formats that are known.
        known: Vec<String>,
    },

    /// The format says too little without the base model.
    #[error(
        "{reason}; read it together with the base model: `StoredAdapter::open_for(path, &base)`, or `--base` on the command line"
    )]
    NeedsBase {
        /// What the base model tells.
        reason: String,
    },

    /// A setting of the format is missing or has a value that no adapter can have.
    #[error("`{field}` {reason}")]
    Field {
        /// The field of the config or of the file's metadata.
        field: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A tensor is not what the format has under its key.
    #[error("`{}` {reason}", words::shortened(.key))]
    Key {
        /// The key as it is in the file.
        key: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A key may mean several modules of the base model.
    #[error("`{}` may be {} of the base model", words::shortened(.key), words::join(.candidates, " or "))]
    Ambiguous {
        /// The key as it is in the file.
        key: String,
        /// The modules that it may mean.
        candidates: Vec<String>,
    },

    /// Modules of the adapter have other names in the base model.
    #[error(
        "the base model has no `{}`; {} fits: `--rename {from}={to}`, or `NameMap::new().prefix(\"{from}\", \"{to}\")`",
        words::shortened(.module),
        if *.modules == 1 { "for it another name".to_owned() } else { format!("for all {} modules of that sort another name", .modules) }
    )]
    OtherNames {
        /// The first module that the base model lacks.
        module: String,
        /// How many modules the base model lacks under the adapter's names and has under the others.
        modules: usize,
        /// The beginning of the adapter's paths.
        from: String,
        /// The beginning of the base model's paths.
        to: String,
    },

    /// Nothing in the file is for this base model.
    #[error("nothing in it is for this base model: {reason}")]
    NothingForBase {
        /// What it is for.
        reason: String,
    },

    /// A pickle has more than tensors, or is damaged.
    #[error("not a file of tensors that torch saved: {reason}")]
    Pickle {
        /// What is wrong.
        reason: String,
    },
}

/// What a folder has instead of one file of weights.
fn which_file(files: &[String]) -> String {
    match files {
        [] => "there is no adapter in the folder: no file of weights in it is of a known kind (safetensors, torch's, GGUF)".to_owned(),
        files => format!("{} may each be the adapter; pass one of the files", words::quoted_list(files)),
    }
}
