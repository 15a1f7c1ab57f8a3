//! `config.json` as transformers writes it, in version 5 and before.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::config::{Architecture, LlamaConfig};
use super::rope::RopeScaling;

/// The keys of the file that matter.
#[derive(Deserialize)]
struct ConfigFile {
    model_type: Architecture,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default, rename = "hidden_act")]
    _hidden_act: Activation,
    #[serde(default = "default_length")]
    max_position_embeddings: usize,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "default_window")]
    sliding_window: Option<usize>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeFile>,
    /// Version 5 keeps all settings of the rotary embedding here.
    rope_parameters: Option<RopeFile>,
    partial_rotary_factor: Option<f64>,
}

/// The supported activations; other names are refused.
#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Activation {
    #[default]
    #[serde(alias = "swish")]
    Silu,
}

/// `rope_parameters`, or `rope_scaling` in older files.
#[derive(Default, Deserialize)]
struct RopeFile {
    rope_type: Option<String>,
    /// The older name of that key; many files have both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

fn default_length() -> usize {
    2048
}

fn default_eps() -> f64 {
    1e-6
}

/// Mistral's window, unless the file says that there is none.
fn default_window() -> Option<usize> {
    Some(4096)
}

const DEFAULT_THETA: f64 = 10_000.0;

impl<'de> Deserialize<'de> for LlamaConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ConfigFile::deserialize(deserializer)?.try_into().map_err(D::Error::custom)
    }
}

impl TryFrom<ConfigFile> for LlamaConfig {
    type Error = String;

    fn try_from(file: ConfigFile) -> Result<Self, String> {
        let architecture = file.model_type;
        let heads = file.num_attention_heads;
        let rope = file.rope_parameters.or(file.rope_scaling).unwrap_or_default();
        if let Some(part) =
            rope.partial_rotary_factor.or(file.partial_rotary_factor).filter(|part| *part != 1.0)
        {
            return Err(format!("`partial_rotary_factor` {part} is not supported"));
        }
        let has_window = match architecture {
            Architecture::Llama => false,
            Architecture::Mistral => true,
            Architecture::Qwen2 | Architecture::Qwen3 => file.use_sliding_window,
        };
        let head_dim = match (file.head_dim, architecture) {
            (Some(size), _) => size,
            (None, Architecture::Qwen3) => 128,
            (None, _) => file.hidden_size / heads.max(1),
        };
        let qkv_bias = match architecture {
            Architecture::Llama | Architecture::Qwen3 => file.attention_bias,
            Architecture::Mistral => false,
            Architecture::Qwen2 => true,
        };
        let config = Self {
            architecture,
            vocab_size: file.vocab_size,
            hidden_size: file.hidden_size,
            intermediate_size: file.intermediate_size,
            num_hidden_layers: file.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: file.num_key_value_heads.unwrap_or(heads),
            head_dim,
            max_position_embeddings: file.max_position_embeddings,
            rms_norm_eps: file.rms_norm_eps,
            rope_theta: rope.rope_theta.or(file.rope_theta).unwrap_or(DEFAULT_THETA),
            rope_scaling: rope.scaling(file.max_position_embeddings)?,
            tie_word_embeddings: file.tie_word_embeddings,
            qkv_bias,
            output_bias: qkv_bias && architecture != Architecture::Qwen2,
            mlp_bias: file.mlp_bias && architecture == Architecture::Llama,
            sliding_window: file.sliding_window.filter(|_| has_window),
        };
        config.checked()
    }
}

impl RopeFile {
    fn scaling(&self, longest: usize) -> Result<RopeScaling, String> {
        let name = self.rope_type.as_deref().or(self.old_type.as_deref()).unwrap_or("default");
        let needed = |field: &str, value: Option<f64>| {
            let value = value.ok_or_else(|| format!("the rope type `{name}` needs `{field}`"))?;
            if value > 0.0 {
                Ok(value)
            } else {
                Err(format!("`{field}` of the rope type `{name}` is {value}; it has to be above 0"))
            }
        };
        match name {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: needed("factor", self.factor)? }),
            "llama3" => {
                let low_freq_factor = needed("low_freq_factor", self.low_freq_factor)?;
                let high_freq_factor = needed("high_freq_factor", self.high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    return Err("`high_freq_factor` has to be above `low_freq_factor`".to_owned());
                }
                let original = self.original_max_position_embeddings.unwrap_or(longest as f64);
                Ok(RopeScaling::Llama3 {
                    factor: needed("factor", self.factor)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: needed(
                        "original_max_position_embeddings",
                        Some(original),
                    )?,
                })
            }
            other => Err(format!(
                "the rope type `{other}` is not supported; supported are `default`, `linear` and `llama3`"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::{Architecture, LlamaConfig};
    use super::super::rope::RopeScaling;
    use serde_json::{Value, json};

    fn config(model_type: &str, more: &Value) -> Result<LlamaConfig, String> {
        let mut file = json!({
            "model_type": model_type, "vocab_size": 10, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        });
        if let (Some(file), Some(more)) = (file.as_object_mut(), more.as_object()) {
            file.extend(more.clone());
        }
        serde_json::from_value(file).map_err(|error| error.to_string())
    }

    #[test]
    fn the_rotary_embedding_is_read_in_both_forms() {
        let old = json!({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2}});
        let new = json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}});
        let (old, new) = (config("llama", &old).unwrap(), config("llama", &new).unwrap());
        assert_eq!(old, new);
        assert_eq!((old.rope_theta, old.rope_scaling), (500.0, RopeScaling::Linear { factor: 2.0 }));
        let plain = config("mistral", &json!({"rope_scaling": null})).unwrap();
        assert_eq!((plain.rope_theta, plain.rope_scaling), (10_000.0, RopeScaling::None));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let refused = |model_type, more: Value, word: &str| {
            let error = config(model_type, &more).unwrap_err();
            assert!(error.contains(word), "{error}");
        };
        refused("gemma", json!({}), "gemma");
        refused("llama", json!({"hidden_act": "gelu"}), "gelu");
        refused("llama", json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "yarn");
        refused("llama", json!({"rope_scaling": {"rope_type": "linear"}}), "factor");
        refused("qwen2", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor");
        refused("llama", json!({"num_key_value_heads": 3}), "num_key_value_heads");
        refused("llama", json!({"head_dim": 5}), "head_dim");
    }

    #[test]
    fn the_members_of_the_family_differ_in_biases_and_windows() {
        let biased = json!({"attention_bias": true, "mlp_bias": true});
        let biases = |model_type| {
            let config = config(model_type, &biased).unwrap();
            (config.qkv_bias, config.output_bias, config.mlp_bias)
        };
        assert_eq!(biases("llama"), (true, true, true));
        assert_eq!(biases("mistral"), (false, false, false));
        assert_eq!(biases("qwen2"), (true, false, false));
        assert_eq!(biases("qwen3"), (true, true, false));
        let window = |model_type, more: Value| config(model_type, &more).unwrap().sliding_window;
        assert_eq!(window("llama", json!({"sliding_window": 8})), None);
        assert_eq!(window("mistral", json!({"sliding_window": 8})), Some(8));
        assert_eq!(window("mistral", json!({"sliding_window": null})), None);
        assert_eq!(window("mistral", json!({})), Some(4096));
        assert_eq!(window("qwen2", json!({"sliding_window": 8, "use_sliding_window": false})), None);
        assert_eq!(window("qwen3", json!({"sliding_window": 8, "use_sliding_window": true})), Some(8));
        assert_eq!(config("qwen3", &json!({})).unwrap().head_dim, 128);
        assert_eq!(Architecture::Qwen3.as_ref(), "qwen3");
    }
}
