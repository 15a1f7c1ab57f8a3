//! The one error type, with the facts of each failure in its variants.

mod fault;
mod report;
mod training;

use std::path::PathBuf;

use crate::ModulePath;

pub use fault::Fault;
pub(crate) use report::shortened;
pub use report::{ShapeMismatch, TensorReport};

/// The result of everything here that can fail, [`forward`](candle_nn::Module::forward) aside.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed. A call that fails leaves the model and the files as they were.
#[derive(Debug, thiserror::Error)]
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

    /// No adapter has that name.
    #[error("no adapter named `{name}`{}", fault::known_names(.known))]
    UnknownAdapter {
        /// The name asked for.
        name: String,
        /// The adapters the model has.
        known: Vec<String>,
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
    #[error("adapters {} all replace `{path}`; only one of them can be active", fault::quoted_list(.adapters))]
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

    /// A config holds a value that its method cannot have.
    #[error("invalid `{field}`: {reason}")]
    Config {
        /// The field under its name in `adapter_config.json`.
        field: &'static str,
        /// What is wrong with its value.
        reason: String,
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
    #[error("`peft_type` \"{peft_type}\" is not supported; supported are {}", fault::quoted_list(.supported))]
    UnsupportedMethod {
        /// The method named in the file.
        peft_type: String,
        /// The methods there are.
        supported: Vec<String>,
    },

    /// The tensors of a state dict or file are not exactly those of the adapter.
    #[error("the tensors do not fit adapter `{adapter}`{report}")]
    Tensors {
        /// The adapter.
        adapter: String,
        /// What is missing, unexpected or has another shape.
        report: TensorReport,
    },

    /// The tensors of a state dict are not exactly those of the base model.
    #[error("the tensors do not fit the base model{report}")]
    BaseTensors {
        /// What is missing, unexpected or has another shape.
        report: TensorReport,
    },

    /// A tensor that trains got no gradient.
    #[error(
        "`{parameter}` of adapter `{adapter}` has no gradient; was the loss computed with the adapter active and trainable?"
    )]
    NoGradient {
        /// The adapter.
        adapter: String,
        /// The tensor.
        parameter: String,
    },

    /// The loss is NaN or infinite. The step that it belongs to has changed nothing.
    #[error("the loss of step {step} is {loss}; {}", training::last_good(.last_checkpoint))]
    NonFiniteLoss {
        /// The step, counted from 1.
        step: u64,
        /// The loss.
        loss: f64,
        /// The newest checkpoint of the run.
        last_checkpoint: Option<PathBuf>,
    },

    /// A gradient is NaN or infinite. The step that it belongs to has changed nothing.
    #[error(
        "in step {step} the gradient of `{parameter}` is NaN or infinite; {}",
        training::last_good(.last_checkpoint)
    )]
    NonFiniteGradient {
        /// The step, counted from 1.
        step: u64,
        /// The first variable with such a gradient.
        parameter: String,
        /// The newest checkpoint of the run.
        last_checkpoint: Option<PathBuf>,
    },

    /// Tensors that train got no gradient.
    #[error("{report}")]
    MissingGradients {
        /// Their names.
        missing: Vec<String>,
        /// Which they are, why, and what to do.
        report: String,
    },

    /// The tensors of a checkpoint are not exactly those of the run that goes on from it.
    #[error("the tensors do not fit {what}{report}")]
    TrainingTensors {
        /// What they should fit.
        what: &'static str,
        /// What is missing, unexpected or has another shape.
        report: TensorReport,
    },

    /// A checkpoint cannot be written or used.
    #[error("cannot use the checkpoint `{}`: {reason}", .path.display())]
    Checkpoint {
        /// The checkpoint, its folder, or a file in it.
        path: PathBuf,
        /// Why not.
        reason: String,
    },

    /// Text is not the state of a run of training.
    #[error("not a valid training state")]
    TrainingState(#[source] serde_json::Error),

    /// A routing of rows to adapters does not fit the batch or the model.
    #[error("cannot route rows to adapters: {reason}")]
    Routing {
        /// What does not fit.
        reason: String,
    },

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

impl Error {
    /// The error and its sources in one line, outermost first.
    ///
    /// ```
    /// use peft_runtime::LoraConfig;
    ///
    /// let error = LoraConfig::from_json(r#"{"peft_type": "LORA", "r": 0}"#).unwrap_err();
    /// assert_eq!(error.chain(), "invalid `r`: the rank is 0; it must be at least 1");
    /// ```
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }

    /// The same error, said of a file.
    pub(crate) fn in_file(self, path: impl Into<PathBuf>) -> Self {
        Self::InFile { path: path.into(), source: Box::new(self) }
    }

    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }

    /// A model without a config of its own.
    pub(crate) fn undeclared(model: &str) -> Self {
        let reason = format!("`{model}` declares none; add `#[peft(lora(rank = 8, alpha = 16))]`");
        Self::Config { field: "lora", reason }
    }

    pub(crate) fn on_layer(path: &ModulePath) -> impl FnOnce(candle_core::Error) -> Self + '_ {
        move |source| Self::OnLayer { path: path.clone(), source }
    }
}

/// The one way into candle's error type, which `forward` has to return; the chain of sources becomes text there.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            other => Self::Msg(other.chain()),
        }
    }
}
