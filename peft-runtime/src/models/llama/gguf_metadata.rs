//! The settings of a model in a GGUF file.

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Result, bail};

use super::config::{Architecture, LlamaConfig};
use super::rope::RopeScaling;

/// The file's keys under the name of its architecture.
struct Metadata<'c> {
    content: &'c Content,
    architecture: &'c str,
}

impl<'c> Metadata<'c> {
    fn find(&self, key: &str) -> Option<&'c Value> {
        self.content.metadata.get(&format!("{}.{key}", self.architecture))
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        self.find(key).map(|value| self.read(key, whole_number(value))).transpose()
    }

    fn needed(&self, key: &str) -> Result<usize> {
        match self.count(key)? {
            Some(count) => Ok(count),
            None => bail!("the file has no `{}.{key}`", self.architecture),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.find(key).map(|value| self.read(key, number(value))).transpose()
    }

    fn text(&self, key: &str) -> Option<&'c str> {
        match self.find(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    fn read<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        match value {
            Some(value) => Ok(value),
            None => bail!("`{}.{key}` is not a single number of the expected type", self.architecture),
        }
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }
}

fn whole_number(value: &Value) -> Option<usize> {
    match *value {
        Value::U8(number) => Some(usize::from(number)),
        Value::U16(number) => Some(usize::from(number)),
        Value::U32(number) => usize::try_from(number).ok(),
        Value::U64(number) => usize::try_from(number).ok(),
        Value::I32(number) => usize::try_from(number).ok(),
        Value::I64(number) => usize::try_from(number).ok(),
        _ => None,
    }
}

fn number(value: &Value) -> Option<f64> {
    match *value {
        Value::F32(number) => Some(f64::from(number)),
        Value::F64(number) => Some(number),
        _ => None,
    }
}

/// The settings of the model in a file; `factors` are what the file divides the rotary embedding's frequencies by.
///
/// # Errors
/// If the file holds another kind of model, or a setting is missing.
pub(super) fn config_of(content: &Content, factors: Option<Vec<f32>>) -> Result<LlamaConfig> {
    let (architecture, metadata) = architecture_of(content)?;
    let name = metadata.architecture;
    if let Some(experts) = metadata.count("expert_count")?.filter(|experts| *experts > 0) {
        bail!("`{name}.expert_count` is {experts}; mixtures of experts are not supported")
    }
    let heads = metadata.needed("attention.head_count")?;
    let hidden_size = metadata.needed("embedding_length")?;
    let head_dim = match metadata.count("attention.key_length")? {
        Some(size) => size,
        None => hidden_size / heads.max(1),
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(size) = metadata.count(key)?.filter(|size| *size != head_dim) {
            bail!("`{name}.{key}` is {size}; only the head size, {head_dim}, is supported")
        }
    }
    let config = LlamaConfig {
        architecture,
        vocab_size: vocabulary(content)?,
        hidden_size,
        intermediate_size: metadata.needed("feed_forward_length")?,
        num_hidden_layers: metadata.needed("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: metadata.count("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        max_position_embeddings: metadata.needed("context_length")?,
        rms_norm_eps: metadata.number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
        rope_theta: metadata.number("rope.freq_base")?.unwrap_or(10_000.0),
        rope_scaling: scaling(&metadata, factors)?,
        tie_word_embeddings: !metadata.has_tensor("output.weight"),
        qkv_bias: metadata.has_tensor("blk.0.attn_q.bias"),
        output_bias: metadata.has_tensor("blk.0.attn_output.bias"),
        mlp_bias: metadata.has_tensor("blk.0.ffn_gate.bias"),
        sliding_window: metadata.count("attention.sliding_window")?.filter(|window| *window > 0),
    };
    config.checked().map_err(candle_core::Error::msg)
}

/// The member of the family that is in a file, and its keys.
fn architecture_of(content: &Content) -> Result<(Architecture, Metadata<'_>)> {
    let Some(Value::String(name)) = content.metadata.get("general.architecture") else {
        bail!("the file has no `general.architecture`")
    };
    let architecture = match name.as_str() {
        "llama" => Architecture::Llama,
        "qwen2" => Architecture::Qwen2,
        "qwen3" => Architecture::Qwen3,
        other => {
            bail!("the architecture `{other}` is not supported; supported are `llama`, `qwen2` and `qwen3`")
        }
    };
    Ok((architecture, Metadata { content, architecture: name }))
}

/// How many heads a file's model has.
pub(super) struct Heads {
    pub(super) architecture: Architecture,
    /// Of queries.
    pub(super) queries: usize,
    /// Of keys and values.
    pub(super) keys: usize,
}

impl Heads {
    pub(super) fn of(config: &LlamaConfig) -> Self {
        let (queries, keys) = (config.num_attention_heads, config.num_key_value_heads);
        Self { architecture: config.architecture, queries, keys }
    }

    /// The number of heads of a projection whose rows are in llama.cpp's order: there, the two values that the rotary
    /// embedding rotates together are neighbours; in transformers they are half a head apart.
    pub(super) fn interleaved(&self, name: &str) -> Option<usize> {
        match (self.architecture, name.rsplit('.').nth(1)) {
            (Architecture::Llama, Some("q_proj")) => Some(self.queries),
            (Architecture::Llama, Some("k_proj")) => Some(self.keys),
            _ => None,
        }
    }
}

/// The heads of the model in a file.
///
/// # Errors
/// If the file holds another kind of model, or a setting is missing.
pub(super) fn heads_of(content: &Content) -> Result<Heads> {
    let (architecture, metadata) = architecture_of(content)?;
    let queries = metadata.needed("attention.head_count")?;
    let keys = metadata.count("attention.head_count_kv")?.unwrap_or(queries);
    Ok(Heads { architecture, queries, keys })
}

fn vocabulary(content: &Content) -> Result<usize> {
    match content.tensor_infos.get("token_embd.weight") {
        Some(info) => Ok(info.shape.dims2()?.0),
        None => bail!("the file has no `token_embd.weight`"),
    }
}

fn scaling(metadata: &Metadata<'_>, factors: Option<Vec<f32>>) -> Result<RopeScaling> {
    let kind = metadata.text("rope.scaling.type").unwrap_or("none");
    match (kind, factors) {
        ("none", Some(factors)) => Ok(RopeScaling::Factors(factors)),
        ("none", None) => Ok(match metadata.number("rope.scale_linear")? {
            Some(factor) => RopeScaling::Linear { factor },
            None => RopeScaling::None,
        }),
        ("linear", None) => match metadata.number("rope.scaling.factor")? {
            Some(factor) => Ok(RopeScaling::Linear { factor }),
            None => bail!("the file has no `{}.rope.scaling.factor`", metadata.architecture),
        },
        (other, _) => bail!("the rope scaling `{other}` is not supported; supported are `none` and `linear`"),
    }
}
