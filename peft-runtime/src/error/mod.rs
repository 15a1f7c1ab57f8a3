//! The one error type, with the facts of each failure in its variants.

mod adapter_file;
mod chain;
mod combination;
mod config;
mod fault;
mod report;
mod routing;
mod shards;
mod state_dict;
mod training;
mod words;

use std::path::PathBuf;

use crate::path::ModulePath;

pub use adapter_file::AdapterFileError;
pub use combination::CombinationError;
pub use config::ConfigError;
pub use fault::Fault;
pub use report::{ShapeMismatch, TensorReport};
pub use routing::RoutingError;
pub use shards::ShardsError;
pub use state_dict::StateDictError;
pub use training::{OptimizerError, TrainingError, TrainingStateError};
pub(crate) use words::shortened;

/// The result of everything here that can fail, [`forward`](candle_nn::Module::forward) aside.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed. A call that fails leaves the model and the files as they were.
///
/// [`Debug`](std::fmt::Debug) prints sentences too, those of all sources included: it is what a `main` that returns this error prints.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An injection was refused before anything was touched; every fault found is listed.
    #[error("cannot inject adapter `{adapter}`{}", fault::bullet_list(.faults))]
    Plan {
        /// The name the adapter would have had.
        adapter: String,
        /// All that is wrong with the injection.
        faults: Vec<Fault>,
    },

    /// A config does not fit a layer that has an adapter already, or a pattern in it cannot be matched.
    #[error(transparent)]
    Fault(#[from] Fault),

    /// No adapter has that name.
    #[error("no adapter named `{name}`{}", words::known_names(.known))]
    UnknownAdapter {
        /// The name asked for.
        name: String,
        /// The adapters the model has.
        known: Vec<String>,
    },

    /// A folder has no adapter in itself, and others have folders in it.
    #[error(
        "there is no adapter in the folder itself; there are adapters in {}, each of which is loaded from its own folder",
        words::quoted_list(.others)
    )]
    NotInFolder {
        /// The folders inside that have adapters.
        others: Vec<String>,
    },

    /// The model has no adapters to do something with.
    #[error("cannot {operation}: the model has no adapters")]
    NoAdapters {
        /// What was asked for.
        operation: &'static str,
    },

    /// The operation cannot work on an adapter that is merged into the base weights.
    #[error(
        "cannot {operation} adapter `{adapter}` while it is merged into the base weights; unmerge it first"
    )]
    Merged {
        /// The merged adapter.
        adapter: String,
        /// What was asked for.
        operation: &'static str,
    },

    /// An adapter has no merged form on a layer.
    #[error("cannot merge adapter `{adapter}` into `{path}`: {reason}")]
    CannotMerge {
        /// The adapter.
        adapter: String,
        /// The layer.
        path: ModulePath,
        /// Why not.
        reason: String,
    },

    /// A merged weight would hold NaN or infinity.
    #[error("merging adapter `{adapter}` into `{path}` gives NaN or infinite values in `{parameter}`")]
    NotFinite {
        /// The adapter.
        adapter: String,
        /// The layer.
        path: ModulePath,
        /// The parameter of the layer.
        parameter: String,
    },

    /// Two active adapters claim the same module, of which only one can act.
    #[error("adapters {} all replace `{path}`; only one of them can be active", words::quoted_list(.adapters))]
    CopiesCollide {
        /// The layer with several copies.
        path: ModulePath,
        /// The adapters that own a copy of it.
        adapters: Vec<String>,
    },

    /// An operation does not apply to the adapter's method or state.
    #[error("cannot {operation} adapter `{adapter}`: {reason}")]
    Unsupported {
        /// What was asked for.
        operation: &'static str,
        /// The adapter.
        adapter: String,
        /// Why not.
        reason: String,
    },

    /// A setting of a call is out of range.
    #[error("`{setting}` is {value}; it must be {expected}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: f64,
        /// What it can be.
        expected: &'static str,
    },

    /// A prompt to continue is empty.
    #[error("the prompt has no tokens; it must have at least one")]
    EmptyPrompt,

    /// A config cannot be read, or holds what its method cannot have.
    #[error(transparent)]
    Config(#[from] ConfigError),

    /// Adapters cannot be combined as asked for.
    #[error(transparent)]
    Combination(#[from] CombinationError),

    /// The tensors of a state dict or file are not those of one adapter.
    #[error(transparent)]
    StateDict(#[from] StateDictError),

    /// A file is not an adapter in a known format, or not one for this base model.
    #[error(transparent)]
    AdapterFile(#[from] AdapterFileError),

    /// Files of weights are not those of one model.
    #[error(transparent)]
    Shards(#[from] ShardsError),

    /// An optimiser cannot work with its groups of variables, or with a gradient.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),

    /// A setting or call needs a feature of this crate that the build does not have.
    #[error("{setting} needs the feature `{feature}` of peft-runtime, which this build does not have")]
    MissingFeature {
        /// The setting or the call.
        setting: String,
        /// The feature.
        feature: &'static str,
    },

    /// The tensors of a state dict or file are not exactly those of the adapter.
    #[error("the tensors do not fit adapter `{adapter}`{report}")]
    Tensors {
        /// The adapter.
        adapter: String,
        /// What is missing, unexpected or has another shape.
        report: Box<TensorReport>,
    },

    /// The tensors of a state dict are not exactly those of the base model.
    #[error("the tensors do not fit the base model{report}")]
    BaseTensors {
        /// What is missing, unexpected or has another shape.
        report: TensorReport,
    },

    /// A step of training, or a checkpoint of it, failed.
    #[error(transparent)]
    Training(#[from] TrainingError),

    /// What was written is not what it should be.
    #[error("`{}` is not as it should be: {reason}", .path.display())]
    Verification {
        /// The file or folder.
        path: PathBuf,
        /// What differs.
        reason: String,
    },

    /// A file is not the state of a run of training.
    #[error(transparent)]
    TrainingState(#[from] TrainingStateError),

    /// The model's state does not allow an adapter for each row.
    #[error("cannot route rows to adapters: {0}")]
    Routing(RoutingError),

    /// Something inside a file is wrong; the source says what.
    #[error("cannot use `{}`", .path.display())]
    InFile {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong in it.
        #[source]
        source: Box<Error>,
    },

    /// The operating system refused a file operation.
    #[error("cannot {operation} `{}`", .path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },

    /// Text is not the JSON that was expected.
    #[error("not a valid adapter config")]
    Json(#[from] serde_json::Error),

    /// A model's `config.json` is not what the model needs.
    #[error("not a valid model config")]
    ModelConfig(#[source] serde_json::Error),

    /// Bytes are not a safetensors file.
    #[error("not a valid safetensors file")]
    Safetensors(#[from] safetensors::SafeTensorError),

    /// A file is recognisably something else than its name says.
    #[error("it is {found}; {advice}")]
    OtherFile {
        /// What it is.
        found: String,
        /// What to do.
        advice: String,
    },

    /// The hub does not give a file.
    #[cfg(feature = "hub")]
    #[error("cannot get `{file}` of `{id}` from the hub")]
    Hub {
        /// The repository.
        id: String,
        /// The file.
        file: String,
        /// The client's error.
        #[source]
        source: Box<hf_hub::api::sync::ApiError>,
    },

    /// A tensor computation failed on a layer.
    #[error("on `{path}`")]
    OnLayer {
        /// The layer.
        path: ModulePath,
        /// candle's error.
        #[source]
        source: candle_core::Error,
    },

    /// A tensor computation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
