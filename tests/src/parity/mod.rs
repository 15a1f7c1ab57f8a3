//! Replays golden scenarios that Python PEFT wrote.
//!
//! A case is a folder with a base model, saved adapters, inputs, steps, and what PEFT computed at each step. A case with an
//! unknown step, model or key fails; nothing is skipped.

mod case;
mod compare;
mod half;
mod models;
mod roundtrip;
mod session;
mod steps;
mod training;

use std::fmt;
use std::path::{Path, PathBuf};

use session::Replay;

pub use case::Case;
pub use roundtrip::{read_case, write_case};

/// Why a case failed.
#[derive(Debug)]
pub struct Failure {
    /// The case.
    pub name: String,
    /// The step, counted from 0, and its op; `None` if the case did not get that far.
    pub step: Option<(usize, String)>,
    /// What went wrong.
    pub reason: String,
}

impl Failure {
    fn of_case(name: &str, reason: impl fmt::Display) -> Self {
        Self { name: name.to_owned(), step: None, reason: reason.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, step, reason } = self;
        let reason = reason.replace('\n', " ");
        match step {
            Some((number, op)) => write!(f, "FAIL {name} step={number} op={op}: {reason}"),
            None => write!(f, "FAIL {name} step=0 op=open: {reason}"),
        }
    }
}

/// The case folders at or below the given ones, sorted; a folder without any is a failure.
pub fn find_cases(folders: &[PathBuf]) -> Vec<Result<PathBuf, Failure>> {
    folders.iter().flat_map(|folder| cases_below(folder)).collect()
}

fn cases_below(folder: &Path) -> Vec<Result<PathBuf, Failure>> {
    if folder.join("case.json").is_file() {
        return vec![Ok(folder.to_owned())];
    }
    let name = folder.display().to_string();
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return vec![Err(Failure::of_case(&name, error))],
    };
    let mut cases: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("case.json").is_file())
        .collect();
    cases.sort();
    if cases.is_empty() {
        return vec![Err(Failure::of_case(&name, "the folder holds no case.json, and no folder with one"))];
    }
    cases.into_iter().map(Ok).collect()
}

/// Replays one case and returns the line of its report.
///
/// # Errors
/// If anything differs from what PEFT computed, or the case cannot be read.
pub fn run_case(folder: &Path) -> Result<String, Failure> {
    let case = open(folder)?;
    let errors = models::with_base_model(&case, Replay(&case))
        .map_err(|reason| Failure::of_case(&case.name, reason))??;
    Ok(passed(&case, &errors))
}

/// The case in a folder, which names it if it cannot be read.
fn open(folder: &Path) -> Result<Case, Failure> {
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Case::read(folder).map_err(|reason| Failure::of_case(&name, reason))
}

/// The line of a case that passed with these errors.
fn passed(case: &Case, errors: &str) -> String {
    format!("ok {} {errors}", case.name)
}
