//! `peft merge`: a base model with adapters merged into its weights.

use indicatif::DecimalBytes;
use peft_runtime::{MergedWeights, StoredAdapter, WriteReport};
use serde_json::json;

use crate::arguments::{MergeArguments, weights};
use crate::failure::Failure;
use crate::files::open_base;
use crate::terminal::{Progress, print, print_json, warn};

/// How many modules a warning names.
const LISTED: usize = 5;

/// Runs the command.
///
/// # Errors
/// If a file cannot be read or written, or an adapter does not fit the base model; nothing is then written.
pub fn run(arguments: &MergeArguments) -> Result<(), Failure> {
    let names = arguments.names.map();
    let mut merged = MergedWeights::new(open_base(&arguments.base)?);
    for (path, weight) in arguments.adapter.iter().zip(weights(&arguments.weights, arguments.adapter.len())) {
        merged = merged.add_renamed(StoredAdapter::open(path)?, weight, &names)?;
    }
    let quiet = arguments.quiet || arguments.json;
    let progress = Progress::new("merging ", quiet);
    let report = merged.write(&arguments.output, &mut |at| progress.show(at.done, at.total, at.tensor))?;
    warn_of_unadapted(&report);
    if arguments.check {
        let progress = Progress::new("checking", quiet);
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
    let checked = if arguments.check { ", read back and verified" } else { "" };
    print(&format!(
        "{}: {} tensors ({} changed), {} in {} files{checked}\n",
        arguments.output.display(),
        report.tensors,
        report.changed,
        DecimalBytes(report.bytes),
        report.files.len(),
    ))
}

/// Warns about modules that an adapter's config targets but its file has no tensors for, such as a head that its model
/// lacked.
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
        "the configs target `{listed}`{more}, but the adapters have no tensors for them; their weights stay as they are in the base model"
    ));
}
