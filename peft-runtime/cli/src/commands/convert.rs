//! `peft convert`: an adapter in another format.

use std::path::{Path, PathBuf};

use candle_core::DType;
use peft_runtime::{BaseWeights, ImageProgram, PipelineModel, StoredAdapter};
use serde_json::{Value, json};

use crate::arguments::{AUTO, Component, ConvertArguments, Format};
use crate::failure::Failure;
use crate::files::{check_free, open_adapter, open_base, read_model_config, warn_of_left_out};
use crate::float_type::rounded;
use crate::mlx_adapter;
use crate::terminal::{print, print_json};

/// Runs the command.
///
/// # Errors
/// If a file cannot be read or written, or the adapter cannot be written in that format.
pub fn run(arguments: &ConvertArguments) -> Result<(), Failure> {
    let exists = match arguments.to {
        Format::Peft | Format::PlainLora | Format::Mlx => StoredAdapter::is_in(&arguments.output),
        Format::Gguf | Format::Kohya | Format::Diffusers => arguments.output.exists(),
    };
    check_free(&arguments.output, exists, arguments.force)?;
    let base = base_weights(arguments)?;
    let adapter = open_adapter(&arguments.adapter, base.as_ref())?;
    check_format(&arguments.from, &adapter)?;
    warn_of_left_out(&adapter);
    let from = adapter.format();
    let tensors = write(arguments, adapter, base.as_ref())?;
    if arguments.json {
        let output = &arguments.output;
        return print_json(&json!({ "output": output, "from": from, "tensors": tensors }));
    }
    print(&format!("{}: {tensors} tensors\n", arguments.output.display()))
}

/// Writes an adapter in the format, and returns the number of its tensors.
fn write(
    arguments: &ConvertArguments,
    adapter: StoredAdapter,
    base: Option<&BaseWeights>,
) -> Result<usize, Failure> {
    let output = &arguments.output;
    let in_dtype = |adapter: StoredAdapter| match arguments.dtype {
        Some(dtype) => rounded(&adapter, dtype),
        None => Ok(adapter),
    };
    match arguments.to {
        Format::Peft => save(&in_dtype(adapter)?, output),
        Format::PlainLora => save(&in_dtype(adapter.to_plain_lora(base)?)?, output),
        Format::Gguf => {
            let half = gguf_is_half(arguments)?;
            let config = model_config(arguments, &adapter)?;
            Ok(adapter.to_plain_lora(base)?.save_gguf(output, &config, base, half)?)
        }
        Format::Kohya => image_file(arguments, &in_dtype(adapter)?, ImageProgram::Kohya),
        Format::Diffusers => image_file(arguments, &in_dtype(adapter)?, ImageProgram::Diffusers),
        Format::Mlx => {
            let uniform = mlx_adapter::fitting(&adapter, base)?;
            mlx_adapter::write(&uniform, output, arguments.dtype)?;
            Ok(uniform.shapes().len())
        }
    }
}

/// Whether a GGUF file is written in half precision, which is f16 there.
fn gguf_is_half(arguments: &ConvertArguments) -> Result<bool, Failure> {
    match arguments.dtype {
        Some(DType::BF16) => Err(Failure::new(
            "llama.cpp takes adapters in f32 and f16, not in bf16",
            "use `--dtype f16` or `--dtype f32`",
        )),
        Some(dtype) => Ok(dtype == DType::F16),
        None => Ok(arguments.f16),
    }
}

/// Saves an adapter as PEFT does, and returns the number of its tensors.
fn save(adapter: &StoredAdapter, folder: &Path) -> Result<usize, Failure> {
    adapter.save(folder)?;
    Ok(adapter.shapes().len())
}

/// Writes a file of a program for image models, and returns the number of its tensors.
fn image_file(
    arguments: &ConvertArguments,
    adapter: &StoredAdapter,
    program: ImageProgram,
) -> Result<usize, Failure> {
    let model = match arguments.component {
        Some(Component::Unet) => PipelineModel::Unet,
        Some(Component::Transformer) => PipelineModel::Transformer,
        Some(Component::TextEncoder) => PipelineModel::TextEncoder,
        Some(Component::TextEncoder2) => PipelineModel::TextEncoder2,
        None => model_of(adapter)?,
    };
    Ok(adapter.save_for(&arguments.output, program, model)?)
}

/// The model of a pipeline that has modules with the adapter's names.
fn model_of(adapter: &StoredAdapter) -> Result<PipelineModel, Failure> {
    let known = [
        ("down_blocks.", PipelineModel::Unet),
        ("mid_block.", PipelineModel::Unet),
        ("up_blocks.", PipelineModel::Unet),
        ("transformer_blocks.", PipelineModel::Transformer),
        ("single_transformer_blocks.", PipelineModel::Transformer),
        ("double_blocks.", PipelineModel::Transformer),
        ("single_blocks.", PipelineModel::Transformer),
    ];
    let layers = adapter.layers()?;
    let found = layers.iter().find_map(|layer| {
        let path = layer.path.as_str();
        known.iter().find(|(start, _)| path.starts_with(start)).map(|(_, model)| *model)
    });
    found.ok_or_else(|| {
        Failure::new(
            "the names of the adapter's modules do not tell which model it is for",
            "say it with `--component`: `unet`, `transformer`, `text-encoder` or `text-encoder-2`",
        )
    })
}

/// Refuses an adapter in another format than it was said to have.
fn check_format(said: &str, adapter: &StoredAdapter) -> Result<(), Failure> {
    let found = adapter.format();
    if said == AUTO || said == found {
        return Ok(());
    }
    let message = format!("the adapter is in the format `{found}`, not `{said}`");
    Err(Failure::new(message, "leave out `--from`: the format is found by the content"))
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
    ["model", "diffusion_pytorch_model"].iter().any(|stem| {
        let name = |end: &str| folder.join(format!("{stem}.safetensors{end}"));
        name("").is_file() || name(".index.json").is_file()
    })
}

/// The base model's config: from `--model-config`, from `--base`, or from the folder that the adapter names as its base model.
fn model_config(arguments: &ConvertArguments, adapter: &StoredAdapter) -> Result<Value, Failure> {
    let named = adapter.config().method().common().base_model_name_or_path.clone();
    let given = arguments.model_config.iter().chain(&arguments.base).cloned();
    let mut candidates = given.chain(named.map(PathBuf::from));
    match candidates.find_map(config_in) {
        Some(path) => read_model_config(&path),
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
