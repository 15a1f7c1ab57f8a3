//! The folder that mlx-lm reads: `adapters.safetensors` with `lora_a` `[in, rank]` and `lora_b` `[rank, out]` for each module, and a
//! config with one rank and one scale.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

use peft_runtime::candle_core::{Device, Tensor};
use peft_runtime::{StoredAdapter, StoredKind};
use serde_json::json;

use crate::failure::Failure;
use crate::files::new_file;

/// Writes a plain adapter of one rank.
///
/// # Errors
/// If the adapter has something else than factors, or the folder cannot be written.
pub fn write(adapter: &StoredAdapter, folder: &Path) -> Result<(), Failure> {
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    let (mut keys, mut rank, mut scale) = (BTreeSet::new(), 0, 1.0);
    for layer in adapter.layers()? {
        let Some(update) = &layer.update else {
            if layer.kind == StoredKind::Base {
                continue;
            }
            return Err(Failure::new(
                format!("`{}` has a {}, which mlx-lm's format does not have", layer.path, layer.kind),
                "merge the adapter into the base model with `peft merge`",
            ));
        };
        (rank, scale) = (update.a.dim(0)?, update.scaling);
        let path = layer.path.as_str();
        for (end, factor) in [("lora_a", &update.a), ("lora_b", &update.b)] {
            let factor = factor.to_device(&Device::Cpu)?.t()?.contiguous()?;
            tensors.insert(format!("{path}.{end}"), factor);
        }
        keys.insert(in_block(path).to_owned());
    }
    let config = json!({
        "fine_tune_type": "lora",
        // All of them, which mlx-lm counts from the last.
        "num_layers": -1,
        "lora_parameters": { "rank": rank, "scale": scale, "dropout": 0.0, "keys": keys },
    });
    std::fs::create_dir_all(folder).map_err(|error| Failure::write(folder, &error))?;
    let weights = safetensors::serialize(&tensors, None).map_err(peft_runtime::Error::from)?;
    let text = serde_json::to_string_pretty(&config).map_err(peft_runtime::Error::from)?;
    put(&folder.join("adapters.safetensors"), &weights)?;
    put(&folder.join("adapter_config.json"), text.as_bytes())
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
