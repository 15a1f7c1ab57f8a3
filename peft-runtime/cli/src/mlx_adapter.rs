//! The folder that mlx-lm reads: `adapters.safetensors` with `lora_a` `[in, rank]` and `lora_b` `[rank, out]` for each module, for DoRA
//! the lengths `m` of the rows, and a config with one rank and one scale.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

use peft_runtime::candle_core::{DType, Device, Tensor};
use peft_runtime::{BaseWeights, StoredAdapter, StoredKind, StoredLayer};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::files::new_file;
use crate::float_type::rounded_tensors;

const MERGE: &str = "merge the adapter into the base model with `peft merge`";

/// What PEFT calls DoRA's lengths.
const LENGTHS: &str = "lora_magnitude_vector";

/// Inits that took something out of the base weights.
const CHANGING_INITS: [&str; 5] = ["pissa", "olora", "loftq", "corda", "lora_ga"];

/// The adapter in a form that mlx-lm's format can hold: plain LoRA of one rank, or DoRA as it is.
///
/// # Errors
/// If there is none.
pub fn fitting(adapter: &StoredAdapter, base: Option<&BaseWeights>) -> Result<StoredAdapter, Failure> {
    let config: Value =
        serde_json::from_str(&adapter.config().to_json()?).map_err(peft_runtime::Error::from)?;
    if config.get("use_dora") != Some(&Value::Bool(true)) {
        return Ok(adapter.to_uniform_lora(base)?);
    }
    let init = config.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
    if let Some(init) = CHANGING_INITS.iter().find(|name| init.starts_with(**name)) {
        return Err(Failure::new(
            format!(
                "its init `{init}` changed the base weights, whose lengths DoRA in mlx-lm's format needs"
            ),
            MERGE,
        ));
    }
    let config = adapter.config().clone();
    Ok(StoredAdapter::new(adapter.name(), config, adapter.tensors(&Device::Cpu)?)?)
}

/// The one rank and the one scale of a folder.
#[derive(Clone, Copy)]
struct Sizes {
    rank: usize,
    scale: f64,
}

/// Writes an adapter of LoRA or DoRA. Smaller ranks are padded with zeros, and what a module's scaling is more than the one
/// scale goes into its `lora_b`. The numbers are rounded to `dtype`, if there is one.
///
/// # Errors
/// If the adapter has something that the format does not have, or the folder cannot be written.
pub fn write(adapter: &StoredAdapter, folder: &Path, dtype: Option<DType>) -> Result<(), Failure> {
    let layers = adapter.layers()?;
    let updates = || layers.iter().filter_map(|layer| layer.update.as_ref());
    let rank = updates().map(|update| update.a.dim(0)).collect::<Result<Vec<_>, _>>()?;
    let sizes = Sizes {
        rank: rank.into_iter().max().unwrap_or_default(),
        scale: updates().next().map_or(1.0, |update| update.scaling),
    };
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    let mut keys = BTreeSet::new();
    for layer in layers.iter().filter(|layer| layer.kind != StoredKind::Base) {
        add(&mut tensors, layer, sizes)?;
        keys.insert(in_block(layer.path.as_str()).to_owned());
    }
    if let Some(dtype) = dtype {
        tensors = rounded_tensors(tensors, dtype)?;
    }
    let is_dora = layers.iter().any(|layer| lengths(layer).is_some());
    let config = json!({
        "fine_tune_type": if is_dora { "dora" } else { "lora" },
        // All of them, which mlx-lm counts from the last.
        "num_layers": -1,
        "lora_parameters": { "rank": sizes.rank, "scale": sizes.scale, "dropout": 0.0, "keys": keys },
    });
    std::fs::create_dir_all(folder).map_err(|error| Failure::write(folder, &error))?;
    let weights = safetensors::serialize(&tensors, None).map_err(peft_runtime::Error::from)?;
    let text = serde_json::to_string_pretty(&config).map_err(peft_runtime::Error::from)?;
    put(&folder.join("adapters.safetensors"), &weights)?;
    put(&folder.join("adapter_config.json"), text.as_bytes())
}

/// DoRA's lengths of a layer.
fn lengths(layer: &StoredLayer) -> Option<&Tensor> {
    let ends = |key: &str| key.strip_suffix(".weight").unwrap_or(key) == LENGTHS;
    layer.tensors.iter().find(|(key, _)| ends(key)).map(|(_, tensor)| tensor)
}

/// Adds the tensors of a layer.
fn add(tensors: &mut BTreeMap<String, Tensor>, layer: &StoredLayer, sizes: Sizes) -> Result<(), Failure> {
    let path = layer.path.as_str();
    let cannot_hold =
        |what: &str| Failure::new(format!("`{path}` has {what}, which mlx-lm's format does not have"), MERGE);
    let Some(update) = &layer.update else { return Err(cannot_hold(&format!("a {}", layer.kind))) };
    if layer.tensor("lora_B.bias").is_some() {
        return Err(cannot_hold("a bias on B"));
    }
    if let Some(lengths) = lengths(layer) {
        if layer.tensor("lora_A.weight").is_none_or(|a| a.rank() != 2) {
            return Err(cannot_hold("DoRA on something else than a linear layer"));
        }
        let lengths = lengths.to_device(&Device::Cpu)?.flatten_all()?;
        tensors.insert(format!("{path}.m"), lengths);
    }
    let missing = sizes.rank - update.a.dim(0)?;
    let a = update.a.pad_with_zeros(0, 0, missing)?;
    let mut b = update.b.pad_with_zeros(1, 0, missing)?;
    if update.scaling.to_bits() != sizes.scale.to_bits() {
        b = (b * (update.scaling / sizes.scale))?;
    }
    for (end, factor) in [("lora_a", a), ("lora_b", b)] {
        tensors.insert(format!("{path}.{end}"), factor.to_device(&Device::Cpu)?.t()?.contiguous()?);
    }
    Ok(())
}

/// Writes a whole file or none.
fn put(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut file = new_file(path, ".tmp")?;
    file.write_all(bytes).map_err(|error| Failure::write(path, &error))?;
    file.persist(path).map_err(|error| Failure::write(path, &error.error))?;
    Ok(())
}

/// The name of a module in its block, by which mlx-lm finds it in every block; the whole path of a module outside.
fn in_block(path: &str) -> &str {
    let mut rest = path;
    while let Some((segment, after)) = rest.split_once('.') {
        if segment.bytes().all(|byte| byte.is_ascii_digit()) {
            return after;
        }
        rest = after;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::in_block;

    #[test]
    fn modules_are_named_in_their_block() {
        assert_eq!(in_block("model.layers.11.self_attn.q_proj"), "self_attn.q_proj");
        assert_eq!(in_block("model.embed_tokens"), "model.embed_tokens");
        assert_eq!(in_block("lm_head"), "lm_head");
    }
}
