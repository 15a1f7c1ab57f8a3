//! Which tensors of a set are missing, unexpected or of another shape.

use std::fmt;

use super::words::shortened;

/// How a set of tensors differs from the one an adapter needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorReport {
    /// Keys the adapter needs and the set lacks.
    pub missing: Vec<String>,
    /// Keys of the set that belong to no tensor of the adapter.
    pub unexpected: Vec<String>,
    /// Keys whose tensors have another shape.
    pub mismatched: Vec<ShapeMismatch>,
    /// Prefixes of paths, each with the one that takes its place, one after the other: with them every module would be found. It is
    /// empty where nothing was tried, and where nothing fits or several do.
    pub renames: Vec<(String, String)>,
}

/// A tensor with another shape than expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// The key.
    pub key: String,
    /// The shape the adapter needs.
    pub expected: Vec<usize>,
    /// The shape found.
    pub found: Vec<usize>,
}

impl TensorReport {
    /// Whether the set is exactly the one needed.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }
}

/// How many keys of one kind a message lists.
const LISTED: usize = 5;

impl fmt::Display for TensorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_keys(f, "missing", &self.missing)?;
        write_keys(f, "unexpected", &self.unexpected)?;
        for mismatch in self.mismatched.iter().take(LISTED) {
            let ShapeMismatch { key, expected, found } = mismatch;
            write!(f, "; `{}` has shape {found:?}, expected {expected:?}", shortened(key))?;
        }
        match self.mismatched.len() {
            count if count > LISTED => write!(f, "; {} more have other shapes", count - LISTED)?,
            _ => {}
        }
        write_renames(f, &self.renames)
    }
}

/// What to rename, for the library and for the command line.
fn write_renames(f: &mut fmt::Formatter<'_>, renames: &[(String, String)]) -> fmt::Result {
    if renames.is_empty() {
        return Ok(());
    }
    write!(f, "; every module would be found with ")?;
    write!(f, "`NameMap::new()")?;
    for (from, to) in renames {
        write!(f, ".prefix({:?}, {:?})", shortened(from), shortened(to))?;
    }
    write!(f, "`, on the command line `")?;
    for (i, (from, to)) in renames.iter().enumerate() {
        write!(f, "{}--rename {}={}", if i == 0 { "" } else { " " }, shortened(from), shortened(to))?;
    }
    write!(f, "`")
}

fn write_keys(f: &mut fmt::Formatter<'_>, sort: &str, keys: &[String]) -> fmt::Result {
    if keys.is_empty() {
        return Ok(());
    }
    write!(f, "; {sort}: ")?;
    for (i, key) in keys.iter().take(LISTED).enumerate() {
        write!(f, "{}`{}`", if i == 0 { "" } else { ", " }, shortened(key))?;
    }
    match keys.len() {
        count if count > LISTED => write!(f, " and {} more", count - LISTED),
        _ => Ok(()),
    }
}
