//! Why a pickle is not read.

use crate::error::{AdapterFileError, Error};

/// Why a pickle is not read further.
#[derive(Debug)]
pub(super) struct Fault(pub(super) String);

impl Fault {
    pub(super) fn new<T>(reason: impl Into<String>) -> Result<T, Self> {
        Err(Self(reason.into()))
    }
}

impl From<Fault> for Error {
    fn from(Fault(reason): Fault) -> Self {
        AdapterFileError::Pickle { reason }.into()
    }
}
