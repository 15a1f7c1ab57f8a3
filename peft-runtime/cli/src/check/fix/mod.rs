//! An adapter that a program takes and that computes the same, where there is one.

mod contents;
mod plan;
mod request;

use peft_runtime::{BaseWeights, StoredAdapter};

use crate::check::arguments::ProgramName;
use crate::failure::Failure;
use crate::files::{check_free, open_base, read_model_config};
use crate::mlx_adapter;
use contents::Contents;
use plan::Plan;

pub use request::Request;

/// Writes the adapter and returns what was done, in words.
///
/// # Errors
/// If no adapter computes the same and is taken, with the reasons; or if a file cannot be read or written.
pub fn write(request: &Request<'_>) -> Result<Vec<String>, Failure> {
    let exists = StoredAdapter::is_in(request.output) || request.output.is_file();
    check_free(request.output, exists, request.arguments.force)?;
    let plan = Plan::of(request)?;
    let base = match request.arguments.base.as_slice() {
        [] => None,
        paths => {
            let names = request.names.cloned().unwrap_or_default();
            Some(BaseWeights::new(open_base(paths)?)?.with_names(names))
        }
    };
    let mut steps = plan.words.clone();
    let mut contents = Contents::read(request.adapter)?;
    if plan.drops_unchanged {
        let weights = match request.arguments.base.as_slice() {
            [] => None,
            paths => Some(open_base(paths)?),
        };
        steps.extend(contents.drop_unchanged(weights.as_ref(), request.names)?);
    }
    let mut adapter = contents.adapter()?;
    if request.arguments.program == Some(ProgramName::Mlx) {
        adapter = mlx_adapter::fitting(&adapter, base.as_ref())?;
    } else if plan.one_rank {
        adapter = adapter.to_uniform_lora(base.as_ref())?;
    } else if plan.plain {
        adapter = adapter.to_plain_lora(base.as_ref())?;
    }
    if let Some(names) = request.names.filter(|names| !names.is_empty()) {
        adapter = contents::renamed(&adapter, names)?;
    }
    save(&adapter, request)?;
    if steps.is_empty() {
        steps.push("nothing had to be changed".to_owned());
    }
    Ok(steps)
}

fn save(adapter: &StoredAdapter, request: &Request<'_>) -> Result<(), Failure> {
    let output = request.output;
    match request.arguments.program {
        Some(ProgramName::Mlx) => mlx_adapter::write(adapter, output, None),
        Some(ProgramName::LlamaCpp) if request.is_gguf() => {
            let config = request.arguments.base.first().map(|base| base.join("config.json"));
            let config = config.filter(|config| config.is_file()).ok_or_else(|| {
                Failure::new(
                    "the base model's `config.json` was not found; the order of rows in a GGUF file depends on it",
                    "pass the base model's folder with `--base`, or let `--fix` write a folder, which llama.cpp's converter reads",
                )
            })?;
            adapter.save_gguf(output, &read_model_config(&config)?, None, false)?;
            Ok(())
        }
        _ => Ok(adapter.save(output)?),
    }
}
