//! What is to be repaired.

use std::path::Path;

use peft_runtime::NameMap;

use crate::check::adapter_file::AdapterFile;
use crate::check::arguments::CheckArguments;
use crate::check::verdict::Verdict;

/// What is to be repaired, for whom, and where it goes.
pub struct Request<'a> {
    pub adapter: &'a AdapterFile,
    pub verdict: &'a Verdict,
    /// The names that make the adapter's modules those of the base model.
    pub names: Option<&'a NameMap>,
    pub arguments: &'a CheckArguments,
    pub output: &'a Path,
}

impl Request<'_> {
    /// Whether the output is to be a GGUF file.
    pub fn is_gguf(&self) -> bool {
        self.output.extension().is_some_and(|extension| extension == "gguf")
    }
}
