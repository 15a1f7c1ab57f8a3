//! The settings of the Llama family.

use serde::Deserialize;

use super::rope::RopeScaling;

/// The settings of a model, as its `config.json` has them.
///
/// Unknown keys are ignored; unsupported values that would change the model are refused by name.
///
/// ```
/// use peft_runtime::models::llama::{Architecture, LlamaConfig};
///
/// let config: LlamaConfig = serde_json::from_str(
///     r#"{
///         "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
///         "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "rope_theta": 1000000.0,
///         "tie_word_embeddings": true
///     }"#,
/// )
/// .unwrap();
/// assert_eq!((config.architecture, config.head_dim, config.qkv_bias), (Architecture::Qwen2, 64, true));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LlamaConfig {
    /// Which member of the family it is.
    pub architecture: Architecture,
    /// The number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// The size of a token's vector.
    pub hidden_size: usize,
    /// The size of the feed-forward layer.
    pub intermediate_size: usize,
    /// The number of blocks.
    pub num_hidden_layers: usize,
    /// The number of query heads.
    pub num_attention_heads: usize,
    /// The number of key and value heads; each serves an equal number of query heads.
    pub num_key_value_heads: usize,
    /// The size of a head.
    pub head_dim: usize,
    /// The longest sequence the model was made for; this is not enforced.
    pub max_position_embeddings: usize,
    /// What the norms add to the mean square.
    pub rms_norm_eps: f64,
    /// The base of the rotary embedding's frequencies.
    pub rope_theta: f64,
    /// How the frequencies are changed for longer sequences.
    pub rope_scaling: RopeScaling,
    /// Whether the output layer shares the weight of the token embedding.
    pub tie_word_embeddings: bool,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
    /// How many tokens attention looks back. Sequences that fit in the window are computed as if there were none;
    /// longer ones are refused.
    pub sliding_window: Option<usize>,
}

/// The members of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 1 to 3, SmolLM2.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen 2 and 2.5, with biases on the query, key and value projections.
    Qwen2,
    /// Qwen 3, with norms on queries and keys.
    Qwen3,
}

impl Architecture {
    /// Transformers' name for it, `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// Whether queries and keys go through a norm of their own, head by head.
    pub(super) fn has_head_norms(self) -> bool {
        self == Self::Qwen3
    }
}

impl AsRef<str> for Architecture {
    fn as_ref(&self) -> &str {
        self.model_type()
    }
}

/// No model has a larger size.
const LARGEST_SIZE: usize = 1 << 24;

impl LlamaConfig {
    /// The config, if its sizes and numbers are consistent.
    pub(super) fn checked(self) -> Result<Self, String> {
        self.check_range()?;
        let Self { num_attention_heads: heads, num_key_value_heads: shared, head_dim, .. } = self;
        if heads == 0 || shared == 0 || !heads.is_multiple_of(shared) {
            return Err(format!(
                "`num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {shared}"
            ));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(format!(
                "`head_dim` is {head_dim}; the rotary embedding rotates pairs, so it has to be even"
            ));
        }
        Ok(self)
    }

    /// An error if a size is larger than any model's, so that products of sizes could overflow, or a number cannot be
    /// computed with.
    fn check_range(&self) -> Result<(), String> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
        ];
        if let Some((name, size)) = sizes.into_iter().find(|(_, size)| *size > LARGEST_SIZE) {
            return Err(format!("`{name}` is {size}, larger than that of any model"));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(format!("`rms_norm_eps` is {}; it has to be at least 0", self.rms_norm_eps));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(format!("`rope_theta` is {}; it has to be above 0", self.rope_theta));
        }
        match self.rope_scaling.wrong_number() {
            Some(number) => Err(format!("a number of the rope scaling is {number}; it has to be above 0")),
            None => Ok(()),
        }
    }
}
