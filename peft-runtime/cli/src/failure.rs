//! Errors as users see them: one line that says what went wrong, and one that says what to do.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::path::Path;

use peft_runtime::Error;
use peft_runtime::error::{AdapterFileError, ConfigError};

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    message: String,
    advice: String,
}

impl Failure {
    /// A failure, and what to do about it.
    pub fn new(message: impl Display, advice: impl Display) -> Self {
        Self { message: message.to_string(), advice: advice.to_string() }
    }

    /// A file that could not be read.
    pub fn read(path: &Path, reason: &dyn Display) -> Self {
        Self::new(format!("cannot read `{}`: {reason}", path.display()), "check the path and the file")
    }

    /// A file that could not be written.
    pub fn write(path: &Path, reason: &dyn Display) -> Self {
        let message = format!("cannot write `{}`: {reason}", path.display());
        Self::new(message, "check that the folder exists and is writable, and that the disk is not full")
    }

    /// Writes it to standard error.
    pub fn report(&self) {
        // There is nowhere left to report a failure of this.
        let _ = writeln!(std::io::stderr(), "error: {}\nhelp: {}", self.message, self.advice);
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(error.chain(), advice(&error))
    }
}

impl From<candle_core::Error> for Failure {
    fn from(error: candle_core::Error) -> Self {
        Error::from(error).into()
    }
}

/// One line that says what to do.
fn advice(error: &Error) -> &'static str {
    match error {
        Error::InFile { source, .. } => advice(source),
        Error::Io { source, .. } => match source.kind() {
            ErrorKind::NotFound => {
                "check the path; an adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`"
            }
            ErrorKind::AlreadyExists => "choose a folder that does not exist yet, or an empty one",
            _ => "check the permissions of the path, and that the disk is not full",
        },
        Error::CannotMerge { .. } => "do what the message says, or merge on a model with the library",
        Error::Tensors { .. } | Error::BaseTensors { .. } => {
            "check that the adapter was trained on this base model; where module names differ, map them with \
             `--rename`, `--rename-module` and `--fuse` of `peft merge`"
        }
        Error::Safetensors(_) => "the file is damaged, or is not a safetensors file; download it again",
        Error::Json(_) | Error::ModelConfig(_) => {
            "the file is damaged, or is not a config of this kind; download it again"
        }
        Error::Config(ConfigError::Invalid { .. } | ConfigError::Unreadable { .. })
        | Error::Plan { .. }
        | Error::Fault(_)
        | Error::Setting { .. }
        | Error::Combination(_) => "correct the value that the message names",
        Error::AdapterFile(error) => match error {
            AdapterFileError::NeedsBase { .. } => {
                "give the base model's folder with `--base`; if the base is a GGUF file, convert the adapter first with \
                 `peft convert --to peft --base FOLDER`"
            }
            AdapterFileError::OtherNames { .. } => {
                "pass the `--rename` that the message names to `peft merge`"
            }
            AdapterFileError::Pickle { .. } => {
                "save a dictionary of tensors and nothing else where it was trained, best as safetensors"
            }
            AdapterFileError::NothingForBase { .. } | AdapterFileError::Ambiguous { .. } => {
                "check that the adapter was trained on this base model"
            }
            _ => "check the path and the file; an adapter is a folder or a file of tensors",
        },
        Error::Shards(_) => "the files of the base model do not fit together; download them again",
        Error::StateDict(_) => "the file does not hold one adapter; save it again where it was trained",
        Error::OtherFile { .. } => "get the file that the message names",
        Error::NotInFolder { .. } => "pass one of the folders that the message names",
        Error::Config(ConfigError::NoMethod { .. }) => {
            "check that the folder is an adapter that PEFT or this library saved, and not a base model or another program's"
        }
        Error::Config(ConfigError::UnsupportedMethod { .. } | ConfigError::UnsupportedSwitch { .. }) => {
            "use an adapter of a supported method without that setting, or use Python PEFT"
        }
        Error::Unsupported { .. } => "change what the message names, or do it on a model with the library",
        Error::NotFinite { .. } => "find the tensor with NaN or infinite values with `peft inspect`",
        Error::CopiesCollide { .. } => "leave out all but one of these adapters",
        Error::Verification { .. } => {
            "delete the output and merge again; if the error comes back, check the disk"
        }
        _ => "look at the adapter with `peft inspect`",
    }
}
