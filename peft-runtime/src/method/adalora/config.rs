//! The config of AdaLoRA: <https://arxiv.org/abs/2303.10512>.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Deserializer, Serialize};

use crate::config::{Bias, TokenIndices, as_number, switch, tokens_or_nothing, truth, unless_unset, yes};
use crate::method::AdapterConfig;

/// The config of an AdaLoRA adapter: `ΔW = α / rank · B·diag(E)·A`, with ranks that training takes away from layers
/// that need them less.
///
/// ```
/// use peft_runtime::AdaLoraConfig;
///
/// // 12 ranks a layer to begin with, 8 on average in the end, after 1,000 steps.
/// let config = AdaLoraConfig::new(12, 8, 1000).with_alpha(16.0).with_schedule(100, 300, 10).with_targets(["q_proj"]);
/// assert_eq!(AdaLoraConfig::from_json(&config.to_json()?)?, config);
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub type AdaLoraConfig = AdapterConfig<AdaLoraSettings>;

/// The settings that only AdaLoRA's config has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdaLoraSettings {
    #[serde(default = "default_init_rank", rename = "init_r")]
    pub(super) init_rank: usize,
    #[serde(default = "default_target_rank", deserialize_with = "target_rank", rename = "target_r")]
    pub(super) target_rank: usize,
    #[serde(default, rename = "total_step")]
    pub(super) total_steps: Option<usize>,
    #[serde(default, rename = "tinit")]
    pub(super) warm_up: usize,
    #[serde(default, rename = "tfinal")]
    pub(super) final_phase: usize,
    #[serde(default = "one", deserialize_with = "interval", rename = "deltaT")]
    pub(super) interval: usize,
    #[serde(default = "default_beta", deserialize_with = "beta")]
    pub(super) beta1: f64,
    #[serde(default = "default_beta", deserialize_with = "beta")]
    pub(super) beta2: f64,
    #[serde(default = "half", rename = "orth_reg_weight")]
    pub(super) orthogonality_weight: f64,
    #[serde(rename = "lora_alpha", default = "default_alpha", serialize_with = "as_number")]
    pub(super) alpha: f64,
    #[serde(rename = "lora_dropout", default)]
    pub(super) dropout: f64,
    #[serde(rename = "init_lora_weights", default = "yes", deserialize_with = "truth")]
    pub(super) init: bool,
    #[serde(default)]
    pub(super) bias: Bias,
    /// Which ranks of a layer are kept, by the name of its E.
    #[serde(default)]
    pub(super) rank_pattern: Option<BTreeMap<String, Vec<bool>>>,
    #[serde(default, deserialize_with = "tokens_or_nothing")]
    pub(super) trainable_token_indices: Option<TokenIndices>,
    #[serde(default, deserialize_with = "unless_unset")]
    pub(super) layer_replication: Option<Vec<(usize, usize)>>,
    #[serde(default, deserialize_with = "switch")]
    pub(super) fan_in_fan_out: bool,
}

fn default_init_rank() -> usize {
    12
}

fn default_target_rank() -> usize {
    8
}

fn one() -> usize {
    1
}

fn default_beta() -> f64 {
    0.85
}

// Loading in PEFT looks at none of these three, and null is their default.

fn target_rank<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_else(default_target_rank))
}

fn interval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_else(one))
}

fn beta<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_else(default_beta))
}

fn half() -> f64 {
    0.5
}

fn default_alpha() -> f64 {
    8.0
}

/// The end of the name of a layer's E in `rank_pattern`.
const E_NAME: &str = ".lora_E";

impl AdaLoraConfig {
    /// A config with the given initial rank of each layer, average rank at the end, and number of training steps;
    /// PEFT's defaults for the rest.
    pub fn new(init_rank: usize, target_rank: usize, total_steps: usize) -> Self {
        Self::of(AdaLoraSettings {
            init_rank,
            target_rank,
            total_steps: Some(total_steps),
            warm_up: 0,
            final_phase: 0,
            interval: 1,
            beta1: default_beta(),
            beta2: default_beta(),
            orthogonality_weight: half(),
            alpha: default_alpha(),
            dropout: 0.0,
            init: true,
            bias: Bias::None,
            rank_pattern: None,
            trainable_token_indices: None,
            layer_replication: None,
            fan_in_fan_out: false,
        })
    }

    /// Alpha, which is the scaling; it is divided by the initial rank.
    #[must_use]
    pub fn with_alpha(mut self, alpha: f64) -> Self {
        self.settings.alpha = alpha;
        self
    }

    /// Drops elements of the adapter's input with this probability while training.
    #[must_use]
    pub fn with_dropout(mut self, probability: f64) -> Self {
        self.settings.dropout = probability;
        self
    }

    /// Keeps all ranks for the first `warm_up` steps, then cuts ranks every `interval` steps, and leaves them unchanged
    /// for the last `final_phase` steps.
    #[must_use]
    pub fn with_schedule(mut self, warm_up: usize, final_phase: usize, interval: usize) -> Self {
        let settings = &mut self.settings;
        (settings.warm_up, settings.final_phase, settings.interval) = (warm_up, final_phase, interval);
        self
    }

    /// The decays of the running means of sensitivity and uncertainty, both between 0 and 1.
    #[must_use]
    pub fn with_betas(mut self, beta1: f64, beta2: f64) -> Self {
        (self.settings.beta1, self.settings.beta2) = (beta1, beta2);
        self
    }

    /// The weight of the term that keeps A and B orthogonal.
    #[must_use]
    pub fn with_orthogonality_weight(mut self, weight: f64) -> Self {
        self.settings.orthogonality_weight = weight;
        self
    }

    /// Whether E starts as zeros; a random one, which changes the output, is meant for tests.
    #[must_use]
    pub fn with_init(mut self, zeros: bool) -> Self {
        self.settings.init = zeros;
        self
    }

    /// Rebuilds the model's list of blocks from ranges of the old one, before adapters are added.
    #[must_use]
    pub fn with_layer_replication(mut self, ranges: impl IntoIterator<Item = Range<usize>>) -> Self {
        self.settings.layer_replication =
            Some(ranges.into_iter().map(|range| (range.start, range.end)).collect());
        self
    }

    /// Which biases of the base model train as well.
    #[must_use]
    pub fn with_bias(mut self, bias: Bias) -> Self {
        self.settings.bias = bias;
        self
    }

    /// Trains these rows of embeddings along: a list for the input embedding, or lists for embeddings by name.
    #[must_use]
    pub fn with_trainable_tokens(mut self, tokens: impl Into<TokenIndices>) -> Self {
        self.settings.trainable_token_indices = Some(tokens.into());
        self
    }

    /// The initial rank of each layer.
    pub fn init_rank(&self) -> usize {
        self.settings.init_rank
    }

    /// The average rank at the end.
    pub fn target_rank(&self) -> usize {
        self.settings.target_rank
    }

    /// The number of training steps.
    pub fn total_steps(&self) -> usize {
        self.settings.total_steps.unwrap_or_default()
    }

    /// The steps before the first cut.
    pub fn warm_up(&self) -> usize {
        self.settings.warm_up
    }

    /// The steps after the last cut.
    pub fn final_phase(&self) -> usize {
        self.settings.final_phase
    }

    /// The steps between two cuts.
    pub fn interval(&self) -> usize {
        self.settings.interval
    }

    /// The decays of the running means.
    pub fn betas(&self) -> (f64, f64) {
        (self.settings.beta1, self.settings.beta2)
    }

    /// The weight of the orthogonality term.
    pub fn orthogonality_weight(&self) -> f64 {
        self.settings.orthogonality_weight
    }

    /// Alpha.
    pub fn alpha(&self) -> f64 {
        self.settings.alpha
    }

    /// The probability of dropout.
    pub fn dropout(&self) -> f64 {
        self.settings.dropout
    }

    /// Whether E starts as zeros.
    pub fn starts_as_zeros(&self) -> bool {
        self.settings.init
    }

    /// Which biases of the base model train.
    pub fn bias(&self) -> Bias {
        self.settings.bias
    }

    /// Which rows of embeddings train along.
    pub fn trainable_tokens(&self) -> Option<&TokenIndices> {
        self.settings.trainable_token_indices.as_ref()
    }

    /// Whether the adapted linear layers store their weights as `[in, out]`.
    pub fn fan_in_fan_out(&self) -> bool {
        self.settings.fan_in_fan_out
    }

    /// The scaling, before it is divided by the rank: alpha, or the initial rank if alpha is not positive.
    pub(super) fn scaling(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
        let rank = self.init_rank() as f64;
        if self.alpha() > 0.0 { self.alpha() } else { rank }
    }

    /// Which ranks of the layer at `path` are kept, if any were cut.
    pub(super) fn kept_ranks(&self, path: &str) -> Option<&[bool]> {
        Some(self.settings.rank_pattern.as_ref()?.get(&format!("{path}{E_NAME}"))?.as_slice())
    }

    /// The layers of which ranks were cut.
    pub(super) fn kept_paths(&self) -> impl Iterator<Item = &str> {
        let names = self.settings.rank_pattern.iter().flat_map(BTreeMap::keys);
        names.map(|name| name.strip_suffix(E_NAME).unwrap_or(name))
    }

    /// The config as it is saved when these ranks are kept.
    pub(super) fn with_kept_ranks(&self, kept: BTreeMap<String, Vec<bool>>) -> Self {
        let named = kept.into_iter().map(|(path, kept)| (format!("{path}{E_NAME}"), kept));
        let pattern: BTreeMap<String, Vec<bool>> = named.collect();
        let rank_pattern = (!pattern.is_empty()).then_some(pattern);
        self.with_settings(AdaLoraSettings { rank_pattern, ..self.settings.clone() })
    }
}
