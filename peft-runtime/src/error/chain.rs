//! Errors with their context, and as text: on one line, as `Debug` prints them, and as candle errors.

use std::fmt;
use std::path::PathBuf;

use super::Error;
use crate::path::ModulePath;

impl Error {
    /// The same error, with the file it concerns.
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

    /// A setting or call that factorises matrices, in a build that cannot.
    pub(crate) fn no_decompositions(setting: impl Into<String>) -> Self {
        Self::MissingFeature { setting: setting.into(), feature: "decompositions" }
    }

    pub(crate) fn on_layer(path: &ModulePath) -> impl FnOnce(candle_core::Error) -> Self + '_ {
        move |source| Self::OnLayer { path: path.clone(), source }
    }

    /// The error and its sources on one line, outermost first.
    ///
    /// ```
    /// use peft_runtime::LoraConfig;
    ///
    /// let error = LoraConfig::from_json(r#"{"peft_type": "LORA", "r": 0}"#).unwrap_err();
    /// assert_eq!(error.chain(), "invalid `r`: the rank is 0; it must be at least 1");
    /// ```
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        for source in self.sources() {
            text.push_str(": ");
            text.push_str(&source.to_string());
        }
        text
    }

    /// The errors that led to this one, outermost first.
    fn sources(&self) -> impl Iterator<Item = &dyn std::error::Error> {
        let first = std::error::Error::source(self).map(|source| source as &dyn std::error::Error);
        std::iter::successors(first, |error| error.source())
    }
}

/// The sentences of the error and of its sources.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let sources: Vec<String> = self.sources().map(ToString::to_string).collect();
        if !sources.is_empty() {
            f.write_str("\n\nCaused by:")?;
        }
        for (number, source) in sources.iter().enumerate() {
            // Further lines of a message are aligned with its first line.
            let source = source.replace('\n', "\n       ");
            match sources.len() {
                1 => write!(f, "\n    {source}")?,
                _ => write!(f, "\n    {number}: {source}")?,
            }
        }
        Ok(())
    }
}

/// The only conversion into candle's error type, which `forward` has to return; the chain of sources becomes text
/// there.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            other => Self::Msg(other.chain()),
        }
    }
}
