//! Adapters in llama.cpp's format.
//!
//! A file has `general.type = adapter`, `adapter.type = lora`, one alpha, and for each weight of the base model two tensors,
//! `NAME.lora_a` `[rank, in]` and `NAME.lora_b` `[out, rank]`. llama.cpp adds alpha / rank · B·A, with the rank of each
//! tensor. For Llama, its rotary embedding rotates neighbouring pairs, while that of transformers rotates the two
//! halves of a head, so the rows of queries and keys are in a different order.

use std::path::Path;

use peft_runtime::adapter::LowRank;
use peft_runtime::candle_core::quantized::gguf_file::{self, Value};
use peft_runtime::candle_core::quantized::{GgmlDType, QTensor};
use peft_runtime::candle_core::{Device, Tensor};
use peft_runtime::{BaseWeights, LoraConfig, StoredAdapter, StoredKind, StoredLayer};
use serde::Deserialize;

use crate::failure::Failure;
use crate::files::{new_file, read_config};

/// What a base model's `config.json` says about its architecture.
#[derive(Debug, Deserialize)]
pub struct ModelConfig {
    model_type: String,
    #[serde(default)]
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    vocab_size: Option<usize>,
    #[serde(default)]
    tie_word_embeddings: bool,
}

/// The supported architectures: transformers' name, llama.cpp's, and whether llama.cpp rotates pairs.
const ARCHITECTURES: [(&str, &str, bool); 4] = [
    ("llama", "llama", true),
    ("mistral", "llama", true),
    ("qwen2", "qwen2", false),
    ("qwen3", "qwen3", false),
];

/// The modules of a block: transformers' names and llama.cpp's.
const BLOCK: [(&str, &str); 7] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The number of heads whose rows llama.cpp has in a different order; `None` if the order is that of transformers.
type Heads = Option<usize>;

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// If it cannot be read or names no model type.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        serde_json::from_str(&read_config(path)?).map_err(|error| {
            Failure::new(
                format!("cannot use `{}`: {error}", path.display()),
                "pass the base model's `config.json` as transformers writes it",
            )
        })
    }

    /// llama.cpp's name for the architecture, and whether it rotates pairs.
    fn architecture(&self) -> Result<(&'static str, bool), Failure> {
        let known = ARCHITECTURES.iter().find(|(name, ..)| *name == self.model_type);
        known.map(|(_, architecture, rotates_pairs)| (*architecture, *rotates_pairs)).ok_or_else(|| {
            let names = ARCHITECTURES.map(|(name, ..)| name).join(", ");
            Failure::new(
                format!("cannot write a GGUF adapter for a `{}` model", self.model_type),
                format!("supported types are {names}; for others, llama.cpp has `convert_lora_to_gguf.py`"),
            )
        })
    }

    /// llama.cpp's name for the weight of the module at `path`, and the heads whose rows it reorders.
    fn tensor(&self, path: &str) -> Result<(String, Heads), Failure> {
        let unknown = || {
            Failure::new(
                format!("llama.cpp has no adapters on `{path}`"),
                "train without adapting that module, or merge the adapter into the base model with `peft merge`",
            )
        };
        let path = path.strip_prefix("model.").unwrap_or(path);
        match path {
            "embed_tokens" => return Ok(("token_embd.weight".to_owned(), None)),
            "lm_head" => return Ok(("output.weight".to_owned(), None)),
            _ => {}
        }
        let rest = path.strip_prefix("layers.").ok_or_else(unknown)?;
        let (block, module) = rest.split_once('.').ok_or_else(unknown)?;
        let block: usize = block.parse().map_err(|_| unknown())?;
        let (_, name) = BLOCK.iter().find(|(known, _)| *known == module).ok_or_else(unknown)?;
        let (_, rotates_pairs) = self.architecture()?;
        let heads = match *name {
            "attn_q" if rotates_pairs => Some(self.num_attention_heads),
            "attn_k" if rotates_pairs => Some(self.num_key_value_heads.unwrap_or(self.num_attention_heads)),
            _ => None,
        };
        Ok((format!("blk.{block}.{name}.weight"), heads))
    }
}

impl ModelConfig {
    /// Refuses weights of the base model that are not those of the GGUF file that the adapter will be used with.
    fn check_size(&self, layer: &StoredLayer, base: Option<&BaseWeights>) -> Result<(), Failure> {
        let rows = layer.tensors.first().and_then(|(_, tensor)| tensor.dims().first().copied());
        let (name, _) = self.tensor(layer.path.as_str())?;
        if !["token_embd.weight", "output.weight"].contains(&name.as_str()) {
            return Err(Failure::new(
                format!(
                    "the adapter's file has a weight of its own for `{}`, which llama.cpp's adapters cannot hold",
                    layer.path
                ),
                "merge the adapter into the base model with `peft merge`, and convert the merged model",
            ));
        }
        let own = base.and_then(|base| base.shape(layer.path.as_str(), "weight")?.first().copied());
        match (rows, own.or(self.vocab_size)) {
            (Some(rows), Some(size)) if rows == size => Ok(()),
            (Some(rows), Some(size)) => Err(Failure::new(
                format!(
                    "the adapter's file has {rows} rows for `{}`, and the base model {size}; llama.cpp's adapters have no place for \
                     new rows",
                    layer.path
                ),
                "merge the adapter into the base model with `peft merge`, and convert the merged model",
            )),
            _ => Err(Failure::new(
                format!(
                    "the adapter's file has a weight for `{}`, and the base model's `config.json` has no `vocab_size` to compare it with",
                    layer.path
                ),
                "pass the base model's folder with `--base`",
            )),
        }
    }

    /// Refuses adapters of a tensor that is embedding and head at once: llama.cpp finds them by its one name.
    fn check_head(&self, layer: &StoredLayer) -> Result<(), Failure> {
        let (name, _) = self.tensor(layer.path.as_str())?;
        if !self.tie_word_embeddings || !["token_embd.weight", "output.weight"].contains(&name.as_str()) {
            return Ok(());
        }
        Err(Failure::new(
            format!(
                "the base model ties its head to its embeddings, and the adapter changes only `{}`; llama.cpp has one tensor for both",
                layer.path
            ),
            "merge the adapter into the base model with `peft merge`, which gives the head a weight of its own, and convert that",
        ))
    }
}

/// Writes a plain LoRA adapter and returns the number of tensors.
///
/// # Errors
/// If the adapter has something that llama.cpp's format cannot hold, or the file cannot be written.
pub fn write(
    adapter: &StoredAdapter,
    model: &ModelConfig,
    base: Option<&BaseWeights>,
    path: &Path,
    half: bool,
) -> Result<usize, Failure> {
    let (architecture, _) = model.architecture()?;
    let Some(config) = adapter.config().downcast_ref::<LoraConfig>() else {
        return Err(Failure::new(
            "only LoRA can be written as GGUF",
            "merge the adapter into the base model",
        ));
    };
    let dtype = if half { GgmlDType::F16 } else { GgmlDType::F32 };
    let mut tensors: Vec<(String, QTensor)> = Vec::new();
    for layer in &adapter.layers()? {
        // PEFT also saves the base weights of adapted embeddings; llama.cpp takes them from the base model.
        if layer.kind == StoredKind::Base && layer.tensors.iter().all(|(end, _)| end == "weight") {
            model.check_size(layer, base)?;
            continue;
        }
        model.check_head(layer)?;
        let (a, b) = factors(layer)?;
        let (name, heads) = model.tensor(layer.path.as_str())?;
        let b = match heads {
            Some(heads) => in_pairs(&b, heads, layer.path.as_str())?,
            None => b,
        };
        // llama.cpp looks up rows of A for an embedding.
        let a = if name == "token_embd.weight" { a.t()? } else { a };
        for (end, tensor) in [("lora_a", a), ("lora_b", b)] {
            // Copied, because quantizing reads the storage from its beginning.
            let tensor = QTensor::quantize(&tensor.contiguous()?.copy()?, dtype)?;
            tensors.push((format!("{name}.{end}"), tensor));
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "the format has alpha in single precision")]
    let alpha = config.alpha() as f32;
    let metadata = [
        ("general.architecture", Value::String(architecture.to_owned())),
        ("general.type", Value::String("adapter".to_owned())),
        ("general.name", Value::String(adapter.name().to_owned())),
        ("general.file_type", Value::U32(u32::from(half))),
        ("general.quantization_version", Value::U32(2)),
        ("adapter.type", Value::String("lora".to_owned())),
        ("adapter.lora.alpha", Value::F32(alpha)),
    ];
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let named: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = new_file(path, ".gguf")?;
    gguf_file::write(file.as_file_mut(), &metadata, &named)?;
    file.as_file().sync_all().map_err(|error| Failure::write(path, &error))?;
    file.persist(path).map_err(|error| Failure::write(path, &error.error))?;
    Ok(tensors.len())
}

/// A and B of a layer that has nothing else.
fn factors(layer: &StoredLayer) -> Result<(Tensor, Tensor), Failure> {
    let more = layer.tensors.iter().map(|(end, _)| end.as_str()).find(|end| end.ends_with("bias"));
    match &layer.update {
        Some(LowRank { a, b, .. }) if layer.kind == StoredKind::Adapter("LoRA") && more.is_none() => {
            Ok((a.to_device(&Device::Cpu)?, b.to_device(&Device::Cpu)?))
        }
        _ => {
            let what = more.map_or_else(|| layer.kind.to_string(), |end| format!("`{end}`"));
            Err(Failure::new(
                format!("`{}` has {what}; llama.cpp's adapters have only the two factors", layer.path),
                "merge the adapter into the base model with `peft merge`, and convert the merged model",
            ))
        }
    }
}

/// Reorders rows head by head, from two halves to neighbouring pairs.
fn in_pairs(b: &Tensor, heads: usize, path: &str) -> Result<Tensor, Failure> {
    let (rows, rank) = b.dims2()?;
    if heads == 0 || !rows.is_multiple_of(2 * heads) {
        return Err(Failure::new(
            format!("`{path}` has {rows} outputs, which do not divide into pairs for {heads} heads"),
            "pass the `config.json` of the model that the adapter was trained on",
        ));
    }
    let halves = b.reshape((heads, 2, rows / heads / 2, rank))?;
    Ok(halves.transpose(1, 2)?.contiguous()?.reshape((rows, rank))?)
}

#[cfg(test)]
mod tests {
    use super::{ModelConfig, in_pairs};
    use peft_runtime::candle_core::{Device, Tensor};

    fn config(model_type: &str) -> ModelConfig {
        let model_type = model_type.to_owned();
        ModelConfig {
            model_type,
            num_attention_heads: 4,
            num_key_value_heads: Some(2),
            vocab_size: None,
            tie_word_embeddings: false,
        }
    }

    #[test]
    fn names_are_those_of_llama_cpp() {
        let name = |path: &str| config("llama").tensor(path).unwrap();
        assert_eq!(name("model.layers.11.self_attn.q_proj"), ("blk.11.attn_q.weight".to_owned(), Some(4)));
        assert_eq!(name("layers.0.self_attn.k_proj"), ("blk.0.attn_k.weight".to_owned(), Some(2)));
        assert_eq!(name("model.layers.2.mlp.down_proj"), ("blk.2.ffn_down.weight".to_owned(), None));
        assert_eq!(name("lm_head"), ("output.weight".to_owned(), None));
        assert_eq!(config("qwen3").tensor("layers.0.self_attn.q_proj").unwrap().1, None);
        for wrong in ["model.norm", "model.layers.x.mlp.up_proj", "model.layers.0.self_attn.rotary"] {
            assert!(config("llama").tensor(wrong).is_err(), "{wrong}");
        }
        assert!(config("gpt2").architecture().is_err());
    }

    #[test]
    fn halves_become_pairs_within_each_head() {
        let rows = Tensor::arange(0f32, 8., &Device::Cpu).unwrap().reshape((8, 1)).unwrap();
        let pairs = in_pairs(&rows, 2, "q").unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(pairs, [0., 2., 1., 3., 4., 6., 5., 7.]);
        assert!(in_pairs(&rows, 3, "q").is_err());
    }
}
