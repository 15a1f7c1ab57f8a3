//! `peft convert`: an adapter in another form.

use std::path::{Path, PathBuf};

use peft_runtime::{BaseWeights, PeftConfig, StoredAdapter};
use serde_json::json;

use crate::args::{ConvertArguments, Form};
use crate::failure::Failure;
use crate::gguf::{self, ModelConfig};
use crate::output::{check_free, open_base, print, print_json};

/// Runs the command.
///
/// # Errors
/// If a file cannot be read or written, or the adapter has no such form.
pub fn run(arguments: &ConvertArguments) -> Result<(), Failure> {
    let is_there = match arguments.to {
        Form::PlainLora => StoredAdapter::is_in(&arguments.output),
        Form::Gguf => arguments.output.exists(),
    };
    check_free(&arguments.output, is_there, arguments.force)?;
    let adapter = StoredAdapter::open(&arguments.adapter)?;
    let plain = adapter.to_plain_lora(base_weights(arguments)?.as_ref())?;
    let tensors = match arguments.to {
        Form::PlainLora => {
            plain.save(&arguments.output)?;
            plain.shapes().len()
        }
        Form::Gguf => {
            let config = model_config(arguments, &adapter)?;
            gguf::write(&plain, &config, &arguments.output, arguments.f16)?
        }
    };
    if arguments.json {
        return print_json(&json!({ "output": arguments.output, "tensors": tensors }));
    }
    print(&format!("{}: {tensors} tensors\n", arguments.output.display()))
}

/// The base model's weights, if they are given: for `gguf`, its folder may have the config alone.
fn base_weights(arguments: &ConvertArguments) -> Result<Option<BaseWeights>, Failure> {
    let is_config = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
    let is_model = |path: &&PathBuf| !is_config(path) && (path.is_file() || has_weights(path));
    let paths: Vec<PathBuf> = arguments.base.iter().filter(is_model).cloned().collect();
    if paths.is_empty() && (arguments.to == Form::Gguf || arguments.base.is_empty()) {
        return Ok(None);
    }
    Ok(Some(BaseWeights::new(open_base(if paths.is_empty() { &arguments.base } else { &paths })?)?))
}

fn has_weights(folder: &Path) -> bool {
    ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| folder.join(name).is_file())
}

/// The base model's config: the one that is given, that of the base model, or that of the model the adapter names.
fn model_config(arguments: &ConvertArguments, adapter: &StoredAdapter) -> Result<ModelConfig, Failure> {
    let named = match adapter.config() {
        PeftConfig::Lora(config) => config.common().base_model_name_or_path.clone(),
        PeftConfig::AdaLora(config) => config.common().base_model_name_or_path.clone(),
        _ => None,
    };
    let given = arguments.model_config.iter().chain(&arguments.base).cloned();
    let mut candidates = given.chain(named.map(PathBuf::from));
    match candidates.find_map(config_in) {
        Some(path) => ModelConfig::read(&path),
        None => Err(Failure::new(
            "the names and the order of rows in a GGUF file depend on the base model, and its `config.json` was not found",
            "give the base model's folder with `--base`, or its `config.json` with `--model-config`",
        )),
    }
}

/// The config that a path means: the file itself, or the one in a folder.
fn config_in(path: PathBuf) -> Option<PathBuf> {
    if path.is_dir() {
        let inside = path.join("config.json");
        return inside.is_file().then_some(inside);
    }
    (path.is_file() && path.extension().is_some_and(|extension| extension == "json")).then_some(path)
}
