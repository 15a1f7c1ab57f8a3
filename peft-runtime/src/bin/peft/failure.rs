//! Errors as the user sees them: what went wrong, and one line of what to do.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::path::Path;

use peft_runtime::Error;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    message: String,
    advice: String,
}

impl Failure {
    /// A failure and what to do about it.
    pub fn new(message: impl Display, advice: impl Display) -> Self {
        Self { message: message.to_string(), advice: advice.to_string() }
    }

    /// A file that could not be written.
    pub fn write(path: &Path, error: &dyn Display) -> Self {
        let message = format!("cannot write `{}`: {error}", path.display());
        Self::new(message, "check that the folder exists, may be written to, and has room")
    }

    /// Writes it to standard error.
    pub fn report(&self) {
        // There is nowhere left to say that this failed.
        let _ = writeln!(std::io::stderr(), "error: {}\nhelp: {}", self.message, self.advice);
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.chain();
        Self { message, advice: advice(&error).to_owned() }
    }
}

impl From<candle_core::Error> for Failure {
    fn from(error: candle_core::Error) -> Self {
        Error::from(error).into()
    }
}

/// One line of what to do.
fn advice(error: &Error) -> &'static str {
    match error {
        Error::InFile { source, .. } => advice(source),
        Error::Io { source, .. } => match source.kind() {
            ErrorKind::NotFound => {
                "check the path; an adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`"
            }
            ErrorKind::AlreadyExists => "name a folder that does not exist yet, or an empty one",
            _ => "check that the path may be used, and that the disk has room",
        },
        Error::Tensors { .. } | Error::CannotMerge { .. } | Error::BaseTensors { .. } => {
            "check that the adapter was made for this base model; `--rename`, `--rename-module` and `--fuse` of \
             `peft merge` say where names differ"
        }
        Error::Safetensors(_) => "the file is damaged or no safetensors file; get it once more",
        Error::Json(_) | Error::ModelConfig(_) => "the file is damaged or no such config; get it once more",
        Error::Config { .. } | Error::Plan { .. } => "correct the value that the message names",
        Error::UnsupportedMethod { .. } | Error::UnsupportedSwitch { .. } => {
            "use an adapter of LoRA, AdaLoRA or IA3 without that setting, or Python PEFT"
        }
        Error::Unsupported { .. } => "change what the reason names, or do it on a model with the library",
        Error::NotFinite { .. } => "look for the broken tensor with `peft inspect`",
        Error::CopiesCollide { .. } => "leave one of the adapters out",
        Error::Checkpoint { .. } => {
            "delete the output and merge once more; if it happens again, check the disk"
        }
        _ => "look at what the adapter holds with `peft inspect`",
    }
}
