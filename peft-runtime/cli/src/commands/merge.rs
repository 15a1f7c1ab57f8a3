//! `peft merge`: a base model with adapters merged into its weights.

use std::path::PathBuf;

use indicatif::DecimalBytes;
use peft_runtime::models::{Comparison, compare_merged};
use peft_runtime::{BaseWeights, MergedWeights, StoredAdapter, WriteReport};
use serde_json::{Value, json};

use super::merge_gguf;
use crate::arguments::{MergeArguments, weights};
use crate::failure::Failure;
use crate::files::{open_adapter, open_base, warn_of_left_out};
use crate::terminal::{Progress, print, print_json, warn};

/// How many modules a warning names.
const LISTED: usize = 5;

/// Runs the command.
///
/// # Errors
/// If a file cannot be read or written, or an adapter does not fit the base model; nothing is then written.
pub fn run(arguments: &MergeArguments) -> Result<(), Failure> {
    if let Some(base) = merge_gguf::base(&arguments.base)? {
        return merge_gguf::run(arguments, base);
    }
    let names = arguments.names.map();
    let base = BaseWeights::new(open_base(&arguments.base)?)?.with_names(names.clone());
    let mut merged = MergedWeights::new(open_base(&arguments.base)?);
    for (path, weight) in arguments.adapter.iter().zip(weights(&arguments.weights, arguments.adapter.len())) {
        let adapter = open_adapter(path, Some(&base))?;
        warn_of_left_out(&adapter);
        merged = merged.add_renamed(adapter, weight, &names)?;
    }
    let quiet = arguments.quiet || arguments.json;
    let progress = Progress::new("merging ", quiet);
    let report = merged.write(&arguments.output, &mut |at| progress.show(at.done, at.total, at.tensor))?;
    warn_of_unadapted(&report);
    for (adapter, unmatched) in merged.unmatched_patterns() {
        warn(&format!("in the config of `{adapter}`, {unmatched}, and has no effect"));
    }
    if arguments.check {
        let progress = Progress::new("checking", quiet);
        merged.verify(&arguments.output, &mut |at| progress.show(at.done, at.total, at.tensor))?;
    }
    let compared = if arguments.check { Some(compare(arguments, &base)?) } else { None };
    if arguments.json {
        return print_json(&json!({
            "output": arguments.output,
            "files": report.files,
            "tensors": report.tensors,
            "changed": report.changed,
            "bytes": report.bytes,
            "checked": arguments.check,
            "compared": compared.as_ref().map(comparison_as_json),
            "unadapted": report.unadapted.iter().map(|left| &left.module).collect::<Vec<_>>(),
        }));
    }
    let checked = if arguments.check { ", read back and verified" } else { "" };
    print(&format!(
        "{}: {} tensors ({} changed), {} in {} files{checked}\n{}",
        arguments.output.display(),
        report.tensors,
        report.changed,
        DecimalBytes(report.bytes),
        report.files.len(),
        compared.as_ref().map(comparison_as_text).unwrap_or_default(),
    ))
}

/// Whether the merged model computes what base model and adapters do.
fn compare(arguments: &MergeArguments, weights_of_base: &BaseWeights) -> Result<Comparison, Failure> {
    let [base] = arguments.base.as_slice() else {
        return Ok(Comparison::NotCompared("the base model is not given as a folder".to_owned()));
    };
    if !base.is_dir() {
        return Ok(Comparison::NotCompared("the base model is not given as a folder".to_owned()));
    }
    if !arguments.names.map().is_empty() {
        let reason = "the adapters have other module names than the base model".to_owned();
        return Ok(Comparison::NotCompared(reason));
    }
    let open = |path: &PathBuf| open_adapter(path, Some(weights_of_base));
    let adapters = arguments.adapter.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let weights = weights(&arguments.weights, adapters.len());
    let weighted: Vec<(&StoredAdapter, f64)> = adapters.iter().zip(weights).collect();
    Ok(compare_merged(base, &weighted, &arguments.output)?)
}

fn comparison_as_text(comparison: &Comparison) -> String {
    match comparison {
        Comparison::Same(close) => format!(
            "what it computes was compared with base model and adapters on {} tokens: outputs differ by {:.1e} of the largest one \
             (at most {:.0e} is allowed); the adapters change them by {:.1e}\n",
            close.tokens, close.difference, close.tolerance, close.effect
        ),
        Comparison::NotCompared(reason) => format!("what it computes was not compared: {reason}\n"),
        _ => String::new(),
    }
}

fn comparison_as_json(comparison: &Comparison) -> Value {
    match comparison {
        Comparison::Same(close) => json!({
            "tokens": close.tokens,
            "difference": close.difference,
            "tolerance": close.tolerance,
            "effect": close.effect,
        }),
        Comparison::NotCompared(reason) => json!({ "not_compared": reason }),
        _ => Value::Null,
    }
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
