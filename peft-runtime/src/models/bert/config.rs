//! The config of BERT.

use candle_core::{Result, bail};
use serde::Deserialize;

use crate::models::activation::HiddenAct;
use crate::nn::Dropout;

/// The `config.json` of a BERT model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct BertConfig {
    /// The number of tokens.
    pub vocab_size: usize,
    /// The size of a token's vector.
    pub hidden_size: usize,
    /// The number of blocks.
    pub num_hidden_layers: usize,
    /// The number of attention heads.
    pub num_attention_heads: usize,
    /// The size of the feed-forward layer.
    pub intermediate_size: usize,
    /// The activation of the feed-forward layer.
    #[serde(default)]
    pub hidden_act: HiddenAct,
    /// The probability of dropout after the embeddings, attention and feed-forward layers, in training mode.
    #[serde(default = "default_dropout")]
    pub hidden_dropout_prob: f64,
    /// The probability of dropout on the probabilities of attention, in training mode.
    #[serde(default = "default_dropout")]
    pub attention_probs_dropout_prob: f64,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// The number of token types.
    pub type_vocab_size: usize,
    /// The token that stands for padding.
    #[serde(default = "default_padding")]
    pub pad_token_id: Option<u32>,
    /// What the norms add to the variance.
    #[serde(default = "default_eps")]
    pub layer_norm_eps: f64,
}

fn default_dropout() -> f64 {
    0.1
}

fn default_padding() -> Option<u32> {
    Some(0)
}

fn default_eps() -> f64 {
    1e-12
}

impl BertConfig {
    pub(super) fn hidden_dropout(&self) -> Result<Dropout> {
        dropout("hidden_dropout_prob", self.hidden_dropout_prob)
    }

    pub(super) fn attention_dropout(&self) -> Result<Dropout> {
        dropout("attention_probs_dropout_prob", self.attention_probs_dropout_prob)
    }
}

/// The dropout that the config has under `key`.
fn dropout(key: &str, probability: f64) -> Result<Dropout> {
    match Dropout::new(probability) {
        Ok(dropout) => Ok(dropout),
        Err(_) => bail!("`{key}` is {probability}; a probability of dropout must be at least 0 and below 1"),
    }
}
