//! Files that torch saved: tensors under their names, and nothing that would have to be run.
//!
//! A pickle is a program. Here it is read by a machine that builds plain values and knows the few functions that put tensors
//! together; any other function ends the reading. What it costs is bounded by its length, and tensors are looked over (do they lie
//! in the file? are they larger than their storage?) before any of them is read.

mod cursor;
mod fault;
mod globals;
mod legacy;
mod machine;
mod opcodes;
mod reduce;
mod strided;
mod tensors;
mod value;
mod zip;

use std::collections::BTreeMap;

use crate::error::Result;

pub(super) use strided::StridedTensor;

/// The tensors of a file of torch's today's form, a ZIP archive.
///
/// # Errors
/// If anything in it is not a tensor, or does not lie in it as it says.
pub(super) fn read_zip(bytes: &[u8]) -> Result<BTreeMap<String, StridedTensor>> {
    let archive = zip::Archive::read(bytes)?;
    let (pickle, storages) = archive.tensors()?;
    let (values, _) = machine::run(pickle, 0)?;
    Ok(tensors::find(&values, &|key| storages.get(key).copied(), bytes)?)
}

/// The tensors of a file of torch's form before 1.6, pickles and then the storages.
///
/// # Errors
/// As [`read_zip`].
pub(super) fn read_legacy(bytes: &[u8]) -> Result<BTreeMap<String, StridedTensor>> {
    let file = legacy::read(bytes)?;
    Ok(tensors::find(&file.values, &|key| file.storages.get(key).copied(), bytes)?)
}
