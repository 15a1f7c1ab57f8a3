//! `peft merge` into a GGUF file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use peft_runtime::models::llama::MergedGguf;
use peft_runtime::{RequantizeReport, StoredAdapter};
use serde_json::json;

use crate::arguments::{MergeArguments, weights};
use crate::failure::Failure;
use crate::table::{Table, number};
use crate::terminal::{Progress, print, print_json};

/// The first bytes of a GGUF file.
const MAGIC: [u8; 4] = *b"GGUF";

/// The base model, if it is a GGUF file.
///
/// # Errors
/// If there are other files with it.
pub fn base(paths: &[PathBuf]) -> Result<Option<&Path>, Failure> {
    let Some(path) = paths.iter().find(|path| is_gguf(path)) else { return Ok(None) };
    if paths.len() > 1 {
        return Err(Failure::new(
            format!("`{}` is a GGUF file, and there are {} base models", path.display(), paths.len()),
            "give one GGUF file, or safetensors files; a model that is split into several GGUF files has to be joined first",
        ));
    }
    Ok(Some(path.as_path()))
}

fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    path.is_file()
        && File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && magic == MAGIC
}

/// Merges into the GGUF file `base`.
///
/// # Errors
/// If a file cannot be read or written, or an adapter does not fit the base model; nothing is then written.
pub fn run(arguments: &MergeArguments, base: &Path) -> Result<(), Failure> {
    let names = arguments.names.map();
    let mut merged = MergedGguf::open(base)?;
    for (path, weight) in arguments.adapter.iter().zip(weights(&arguments.weights, arguments.adapter.len())) {
        merged = merged.add_renamed(StoredAdapter::open(path)?, weight, &names)?;
    }
    let quiet = arguments.quiet || arguments.json;
    let progress = Progress::new("merging ", quiet);
    let report = merged.write(&arguments.output, &mut |at| progress.show(at.done, at.total, at.tensor))?;
    if arguments.check {
        let progress = Progress::new("checking", quiet);
        merged.verify(&arguments.output, &mut |at| progress.show(at.done, at.total, at.tensor))?;
    }
    if arguments.json {
        print_json(&as_json(arguments, &report))
    } else {
        print(&as_text(arguments, &report))
    }
}

fn as_json(arguments: &MergeArguments, report: &RequantizeReport) -> serde_json::Value {
    let layers = report.layers.iter().map(|layer| {
        let dtype = format!("{:?}", layer.dtype);
        json!({ "path": layer.path.as_str(), "type": dtype, "relative_error": layer.relative_error })
    });
    json!({
        "output": arguments.output,
        "changed": report.layers.len(),
        "layers": layers.collect::<Vec<_>>(),
        "relative_error": report.relative_error(),
        "checked": arguments.check,
    })
}

fn as_text(arguments: &MergeArguments, report: &RequantizeReport) -> String {
    let mut table = Table::new(&["module", "type", "error of requantizing"]);
    for layer in &report.layers {
        let cells =
            [layer.path.to_string(), format!("{:?}", layer.dtype), number(Some(layer.relative_error))];
        table.row(cells);
    }
    let checked = match arguments.check {
        true => {
            ", read back and verified; what it computes was not compared, because requantizing changes it by an error of that kind"
        }
        false => "",
    };
    format!(
        "{}{}: {} tensors changed, relative error of requantizing {} in all{checked}\n",
        table.text(),
        arguments.output.display(),
        report.layers.len(),
        number(Some(report.relative_error())),
    )
}
