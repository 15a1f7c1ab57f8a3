//! `peft convert`: an adapter in another format.

use std::path::{Path, PathBuf};

use peft_runtime::{BaseWeights, StoredAdapter};
use serde_json::json;

use crate::arguments::{ConvertArguments, Format};
use crate::failure::Failure;
use crate::files::{check_free, open_base};
use crate::gguf_adapter::{self, ModelConfig};
use crate::terminal::{print, print_json};

/// Runs the command.
///
/// # Errors
/// If a file cannot be read or written, or the adapter cannot be written in that format.
pub fn run(arguments: &ConvertArguments) -> Result<(), Failure> {
    let exists = match arguments.to {
        Format::PlainLora => StoredAdapter::is_in(&arguments.output),
        Format::Gguf => arguments.output.exists(),
    };
    check_free(&arguments.output, exists, arguments.force)?;
    let adapter = StoredAdapter::open(&arguments.adapter)?;
    let plain = adapter.to_plain_lora(base_weights(arguments)?.as_ref())?;
    let tensors = match arguments.to {
        Format::PlainLora => {
            plain.save(&arguments.output)?;
            plain.shapes().len()
        }
        Format::Gguf => {
            let config = model_config(arguments, &adapter)?;
            gguf_adapter::write(&plain, &config, &arguments.output, arguments.f16)?
        }
    };
    if arguments.json {
        return print_json(&json!({ "output": arguments.output, "tensors": tensors }));
    }
    print(&format!("{}: {tensors} tensors\n", arguments.output.display()))
}

/// The base model's weights, if they are given: for `gguf`, its folder may contain only the config.
fn base_weights(arguments: &ConvertArguments) -> Result<Option<BaseWeights>, Failure> {
    let is_config = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
    let is_model = |path: &&PathBuf| !is_config(path) && (path.is_file() || has_weights(path));
    let paths: Vec<PathBuf> = arguments.base.iter().filter(is_model).cloned().collect();
    if paths.is_empty() && (arguments.to == Format::Gguf || arguments.base.is_empty()) {
        return Ok(None);
    }
    Ok(Some(BaseWeights::new(open_base(if paths.is_empty() { &arguments.base } else { &paths })?)?))
}

fn has_weights(folder: &Path) -> bool {
    ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| folder.join(name).is_file())
}

/// The base model's config: from `--model-config`, from `--base`, or from the folder that the adapter names as its base model.
fn model_config(arguments: &ConvertArguments, adapter: &StoredAdapter) -> Result<ModelConfig, Failure> {
    let named = adapter.config().method().common().base_model_name_or_path.clone();
    let given = arguments.model_config.iter().chain(&arguments.base).cloned();
    let mut candidates = given.chain(named.map(PathBuf::from));
    match candidates.find_map(config_in) {
        Some(path) => ModelConfig::read(&path),
        None => Err(Failure::new(
            "the base model's `config.json` was not found; tensor names and the order of rows in a GGUF file depend on it",
            "pass the base model's folder with `--base`, or its `config.json` with `--model-config`",
        )),
    }
}

/// The config at a path: the file itself, or `config.json` in a folder.
fn config_in(path: PathBuf) -> Option<PathBuf> {
    if path.is_dir() {
        let inside = path.join("config.json");
        return inside.is_file().then_some(inside);
    }
    (path.is_file() && path.extension().is_some_and(|extension| extension == "json")).then_some(path)
}
