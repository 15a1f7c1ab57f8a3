//! `peft merge`: a base model with adapters in its weights.

use peft_runtime::{MergedWeights, StoredAdapter, WriteReport};
use serde_json::json;

use crate::args::{MergeArguments, weights};
use crate::failure::Failure;
use crate::output::{Progress, bytes, open_base, print, print_json, warn};

/// How many names a warning lists.
const LISTED: usize = 5;

/// Runs the command.
///
/// # Errors
/// If a file cannot be read or written, or an adapter does not fit the base model; the output then does not appear.
pub fn run(arguments: &MergeArguments) -> Result<(), Failure> {
    let names = arguments.names.map();
    let mut merged = MergedWeights::new(open_base(&arguments.base)?);
    for (path, weight) in arguments.adapter.iter().zip(weights(&arguments.weights, arguments.adapter.len())) {
        merged = merged.add_renamed(StoredAdapter::open(path)?, weight, &names)?;
    }
    let quiet = arguments.quiet || arguments.json;
    let mut progress = Progress::new("merging ", quiet);
    let report = merged.write(&arguments.output, &mut |at| progress.show(at.done, at.total, at.tensor))?;
    warn_of_unadapted(&report);
    if arguments.check {
        let mut progress = Progress::new("checking", quiet);
        merged.verify(&arguments.output, &mut |at| progress.show(at.done, at.total, at.tensor))?;
    }
    if arguments.json {
        return print_json(&json!({
            "output": arguments.output,
            "files": report.files,
            "tensors": report.tensors,
            "changed": report.changed,
            "bytes": report.bytes,
            "checked": arguments.check,
            "unadapted": report.unadapted.iter().map(|left| &left.module).collect::<Vec<_>>(),
        }));
    }
    let checked = if arguments.check { ", read back and checked" } else { "" };
    print(&format!(
        "{}: {} tensors, {} of them changed, {} in {} files{checked}\n",
        arguments.output.display(),
        report.tensors,
        report.changed,
        bytes(report.bytes),
        report.files.len(),
    ))
}

/// The adapters' configs name modules of the base model that the adapters have nothing for, as a head that their model lacked.
fn warn_of_unadapted(report: &WriteReport) {
    let modules: Vec<&str> = report.unadapted.iter().map(|left| left.module.as_str()).collect();
    if modules.is_empty() {
        return;
    }
    let more = match modules.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let listed = modules[..modules.len().min(LISTED)].join("`, `");
    warn(&format!(
        "the configs name `{listed}`{more}, for which the adapters have no tensors; these keep the base model's weights"
    ));
}
