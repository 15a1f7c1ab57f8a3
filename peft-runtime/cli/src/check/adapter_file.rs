//! An adapter as it lies on the disk: its config as JSON and what its tensors are, whatever the method.

use std::path::{Path, PathBuf};

use peft_runtime::{BaseWeights, Error, ModelWeights, StoredAdapter, StoredShape};
use serde_json::Value;

use super::feature::Feature;
use super::judgement::Judgement;
use crate::failure::Failure;
use crate::files::{open_adapter, read_config};

const CONFIG: &str = "adapter_config.json";
const SAFETENSORS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";
const MLX: &str = "adapters.safetensors";
/// The library's names of formats.
const GGUF: &str = "gguf";
const MLX_FORMAT: &str = "mlx";

/// The adapter.
#[derive(Debug)]
pub struct AdapterFile {
    /// Where it is, as the user said it.
    pub path: PathBuf,
    /// Which of the formats it has: [`Feature::PeftFolder`] and its like.
    pub format: Feature,
    /// The config; null where there is none.
    pub config: Value,
    /// The tensors under the keys that the file has.
    pub tensors: Vec<StoredShape>,
    /// What the library says about both.
    pub judgement: Judgement,
}

impl AdapterFile {
    /// Reads the config and what the tensors are.
    ///
    /// # Errors
    /// If nothing there is an adapter, or a file cannot be read.
    pub fn open(path: &Path, base: Option<&BaseWeights>) -> Result<Self, Failure> {
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        let config_path = folder.join(CONFIG);
        let config = if config_path.is_file() { read_json(&config_path)? } else { Value::Null };
        let (format, tensors) =
            if path.is_dir() { in_folder(folder, &config)? } else { in_file(path, &config, base)? };
        let is_peft = matches!(format, Feature::PeftFolder | Feature::OtherFileName);
        let judgement = if is_peft { Judgement::of(path, base) } else { Judgement::default() };
        Ok(Self { path: path.to_owned(), format, config, tensors, judgement })
    }

    /// The value of a field of the config that is there and not null.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.config.get(name).filter(|value| !value.is_null())
    }

    /// The value of a switch; what is absent or null is off.
    pub fn is_on(&self, name: &str) -> bool {
        self.field(name).is_some_and(is_true)
    }
}

/// What Python takes as true.
pub fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(values) => !values.is_empty(),
    }
}

fn in_folder(folder: &Path, config: &Value) -> Result<(Feature, Vec<StoredShape>), Failure> {
    if config.get("peft_type").is_none() && folder.join(MLX).is_file() {
        return Ok((Feature::Mlx, safetensors(&folder.join(MLX))?));
    }
    if !folder.join(SAFETENSORS).is_file() && folder.join(PICKLE).is_file() {
        return Ok((Feature::Pickle, StoredAdapter::open(folder)?.shapes()));
    }
    if config.is_null() {
        // The error that every command gives for a folder without an adapter.
        StoredAdapter::open(folder)?;
    }
    Ok((Feature::PeftFolder, safetensors(&folder.join(SAFETENSORS))?))
}

fn in_file(
    path: &Path,
    config: &Value,
    base: Option<&BaseWeights>,
) -> Result<(Feature, Vec<StoredShape>), Failure> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let adapter = open_adapter(path, base);
    match &adapter {
        Ok(adapter) if adapter.format() == GGUF => return Ok((Feature::Gguf, adapter.shapes())),
        Ok(adapter) if adapter.format() == MLX_FORMAT => return Ok((Feature::Mlx, safetensors(path)?)),
        _ => {}
    }
    if name.ends_with(".gguf") {
        return Ok((Feature::Gguf, adapter?.shapes()));
    }
    if name.ends_with(".bin") || name.ends_with(".pt") {
        return Ok((Feature::Pickle, StoredAdapter::open(path)?.shapes()));
    }
    let format = match (&*name, config.get("peft_type").is_some()) {
        (SAFETENSORS | CONFIG, true) => Feature::PeftFolder,
        (_, true) => Feature::OtherFileName,
        (MLX, false) => Feature::Mlx,
        (_, false) => Feature::ImageFile,
    };
    let weights = if name == CONFIG { path.with_file_name(SAFETENSORS) } else { path.to_owned() };
    Ok((format, safetensors(&weights)?))
}

fn safetensors(path: &Path) -> Result<Vec<StoredShape>, Failure> {
    Ok(ModelWeights::open_files(&[path])?.shapes())
}

fn read_json(path: &Path) -> Result<Value, Failure> {
    serde_json::from_str(&read_config(path)?).map_err(|error| {
        let (path, source) = (path.to_owned(), Box::new(Error::from(error)));
        Error::InFile { path, source }.into()
    })
}
