//! The config of GPT-2.

use serde::Deserialize;

use crate::models::activation::HiddenAct;

/// The `config.json` of a GPT-2 model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Gpt2Config {
    /// The number of tokens.
    pub vocab_size: usize,
    /// The longest sequence.
    pub n_positions: usize,
    /// The size of a token's vector.
    pub n_embd: usize,
    /// The number of blocks.
    pub n_layer: usize,
    /// The number of attention heads.
    pub n_head: usize,
    /// The size of the feed-forward layer; four times the token's vector if it is absent.
    pub n_inner: Option<usize>,
    /// The activation of the feed-forward layer.
    #[serde(default = "default_activation")]
    pub activation_function: HiddenAct,
    /// What the norms add to the variance.
    #[serde(default = "default_eps")]
    pub layer_norm_epsilon: f64,
    /// Whether scores are divided by the root of the head size.
    #[serde(default = "yes")]
    pub scale_attn_weights: bool,
    /// Whether scores are also divided by the number of the block, counted from 1.
    #[serde(default)]
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether blocks attend to an encoder as well, which is not supported.
    #[serde(default)]
    pub add_cross_attention: bool,
    /// Whether the layer that writes logits has the weight of the one that reads tokens.
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
}

fn default_activation() -> HiddenAct {
    HiddenAct::GeluNew
}

fn default_eps() -> f64 {
    1e-5
}

fn yes() -> bool {
    true
}
