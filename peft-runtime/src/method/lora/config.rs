//! The config of LoRA: <https://arxiv.org/abs/2106.09685>.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::eva_config::EvaConfig;
use super::init::{LoftqConfig, LoraInit, as_loftq};
use crate::config::{
    Bias, PatternMap, TokenIndices, as_number, as_numbers, switch, tokens_or_nothing, truth, unless_unset,
};
use crate::method::AdapterConfig;

/// The config of a LoRA adapter: `ΔW = s·B·A` with `s = alpha / rank`, or `alpha / √rank` with rank stabilisation.
///
/// ```
/// use peft_runtime::LoraConfig;
///
/// let config = LoraConfig::new(8, 16.0).with_dropout(0.05).with_targets(["q_proj", "v_proj"]);
/// assert_eq!(config.rank(), 8);
/// assert_eq!(LoraConfig::from_json(&config.to_json()?)?, config);
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub type LoraConfig = AdapterConfig<LoraSettings>;

/// What only LoRA's config has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSettings {
    #[serde(rename = "r", default = "default_rank")]
    pub(super) rank: usize,
    #[serde(rename = "lora_alpha", default = "default_alpha", serialize_with = "as_number")]
    pub(super) alpha: f64,
    #[serde(rename = "lora_dropout", default)]
    pub(super) dropout: f64,
    #[serde(default)]
    pub(super) rank_pattern: PatternMap<usize>,
    #[serde(default, serialize_with = "as_numbers")]
    pub(super) alpha_pattern: PatternMap<f64>,
    #[serde(default)]
    pub(super) bias: Bias,
    #[serde(default, deserialize_with = "switch")]
    pub(super) lora_bias: bool,
    #[serde(default, deserialize_with = "switch")]
    pub(super) use_rslora: bool,
    #[serde(default, deserialize_with = "switch")]
    pub(super) use_dora: bool,
    #[serde(default, deserialize_with = "unless_unset", serialize_with = "as_loftq")]
    pub(super) loftq_config: Option<LoftqConfig>,
    #[serde(default)]
    pub(super) eva_config: Option<EvaConfig>,
    #[serde(rename = "init_lora_weights", default)]
    pub(super) init: LoraInit,
    #[serde(default, deserialize_with = "switch")]
    pub(super) fan_in_fan_out: bool,
    #[serde(default, deserialize_with = "tokens_or_nothing")]
    pub(super) trainable_token_indices: Option<TokenIndices>,
    #[serde(default, deserialize_with = "unless_unset")]
    pub(super) target_parameters: Option<Vec<String>>,
    #[serde(default, deserialize_with = "unless_unset")]
    pub(super) layer_replication: Option<Vec<(usize, usize)>>,
    #[serde(default, deserialize_with = "truth")]
    pub(super) ensure_weight_tying: bool,
}

fn default_rank() -> usize {
    8
}

fn default_alpha() -> f64 {
    8.0
}

impl Default for LoraSettings {
    /// PEFT's defaults: rank 8, alpha 8.
    fn default() -> Self {
        Self {
            rank: default_rank(),
            alpha: default_alpha(),
            dropout: 0.0,
            rank_pattern: PatternMap::default(),
            alpha_pattern: PatternMap::default(),
            bias: Bias::None,
            lora_bias: false,
            use_rslora: false,
            use_dora: false,
            loftq_config: None,
            eva_config: None,
            init: LoraInit::Default,
            fan_in_fan_out: false,
            trainable_token_indices: None,
            target_parameters: None,
            layer_replication: None,
            ensure_weight_tying: false,
        }
    }
}

impl LoraConfig {
    /// A config with the given rank and alpha and PEFT's defaults for the rest.
    ///
    /// Values are checked when the config is used: see [`Fault::Config`](crate::error::Fault::Config).
    pub fn new(rank: usize, alpha: f64) -> Self {
        Self::of(LoraSettings { rank, alpha, ..LoraSettings::default() })
    }

    /// Drops elements of the adapter's input with this probability while training; 0 by default.
    #[must_use]
    pub fn with_dropout(mut self, probability: f64) -> Self {
        self.settings.dropout = probability;
        self
    }

    /// Other ranks for the modules that a pattern matches.
    #[must_use]
    pub fn with_rank_pattern(mut self, patterns: impl Into<PatternMap<usize>>) -> Self {
        self.settings.rank_pattern = patterns.into();
        self
    }

    /// Other alphas for the modules that a pattern matches.
    #[must_use]
    pub fn with_alpha_pattern(mut self, patterns: impl Into<PatternMap<f64>>) -> Self {
        self.settings.alpha_pattern = patterns.into();
        self
    }

    /// Which biases of the base model train as well.
    #[must_use]
    pub fn with_bias(mut self, bias: Bias) -> Self {
        self.settings.bias = bias;
        self
    }

    /// Gives B a bias of its own.
    #[must_use]
    pub fn with_lora_bias(mut self, lora_bias: bool) -> Self {
        self.settings.lora_bias = lora_bias;
        self
    }

    /// Scales by `alpha / √rank` instead of `alpha / rank`: <https://arxiv.org/abs/2312.03732>.
    #[must_use]
    pub fn with_rslora(mut self, use_rslora: bool) -> Self {
        self.settings.use_rslora = use_rslora;
        self
    }

    /// Splits the weight into direction and length: <https://arxiv.org/abs/2402.09353>.
    #[must_use]
    pub fn with_dora(mut self, use_dora: bool) -> Self {
        self.settings.use_dora = use_dora;
        self
    }

    /// Starts as LoftQ does, with these settings.
    #[must_use]
    pub fn with_loftq(mut self, loftq: LoftqConfig) -> Self {
        self.settings.init = LoraInit::Loftq;
        self.settings.loftq_config = Some(loftq);
        self
    }

    /// Starts from the directions of the layers' inputs, with these settings; call `initialise_eva` after injecting.
    #[must_use]
    pub fn with_eva(mut self, eva: EvaConfig) -> Self {
        self.settings.init = LoraInit::Eva;
        self.settings.eva_config = Some(eva);
        self
    }

    /// Trains rows of embeddings: those of these tokens in the input embedding, or in the embeddings named.
    #[must_use]
    pub fn with_trainable_tokens(mut self, tokens: impl Into<TokenIndices>) -> Self {
        self.settings.trainable_token_indices = Some(tokens.into());
        self
    }

    /// Adapts bare parameters, held as `Adapted<Weight>`, by the ends of their paths: `experts.gate_up_proj`.
    #[must_use]
    pub fn with_target_parameters<S: Into<String>>(
        mut self,
        parameters: impl IntoIterator<Item = S>,
    ) -> Self {
        self.settings.target_parameters = Some(parameters.into_iter().map(Into::into).collect());
        self
    }

    /// Builds the model's list of blocks anew from ranges of the old one, before adapters are put in. The copies share
    /// their base weights and have adapters of their own.
    #[must_use]
    pub fn with_layer_replication(mut self, ranges: impl IntoIterator<Item = Range<usize>>) -> Self {
        self.settings.layer_replication =
            Some(ranges.into_iter().map(|range| (range.start, range.end)).collect());
        self
    }

    /// How the factors start.
    #[must_use]
    pub fn with_init(mut self, init: LoraInit) -> Self {
        self.settings.init = init;
        self
    }

    /// The rank where no pattern says otherwise.
    pub fn rank(&self) -> usize {
        self.settings.rank
    }

    /// Alpha where no pattern says otherwise.
    pub fn alpha(&self) -> f64 {
        self.settings.alpha
    }

    /// The probability of dropout.
    pub fn dropout(&self) -> f64 {
        self.settings.dropout
    }

    /// Ranks by pattern.
    pub fn rank_pattern(&self) -> &PatternMap<usize> {
        &self.settings.rank_pattern
    }

    /// Alphas by pattern.
    pub fn alpha_pattern(&self) -> &PatternMap<f64> {
        &self.settings.alpha_pattern
    }

    /// Which biases of the base model train.
    pub fn bias(&self) -> Bias {
        self.settings.bias
    }

    /// Whether B has a bias.
    pub fn lora_bias(&self) -> bool {
        self.settings.lora_bias
    }

    /// Whether the scaling is rank-stabilised.
    pub fn use_rslora(&self) -> bool {
        self.settings.use_rslora
    }

    /// Whether the weight is split into direction and length.
    pub fn use_dora(&self) -> bool {
        self.settings.use_dora
    }

    /// How LoftQ quantises.
    pub fn loftq(&self) -> LoftqConfig {
        self.settings.loftq_config.unwrap_or_default()
    }

    /// How EVA shares out ranks, if that is how the factors start.
    pub fn eva(&self) -> Option<EvaConfig> {
        (self.settings.init == LoraInit::Eva).then(|| self.settings.eva_config.clone().unwrap_or_default())
    }

    /// The rows of embeddings that train.
    pub fn trainable_tokens(&self) -> Option<&TokenIndices> {
        self.settings.trainable_token_indices.as_ref()
    }

    /// The bare parameters that are adapted.
    pub fn target_parameters(&self) -> &[String] {
        self.settings.target_parameters.as_deref().unwrap_or_default()
    }

    /// The ranges of blocks that the model's list of blocks is built from.
    pub fn layer_replication(&self) -> &[(usize, usize)] {
        self.settings.layer_replication.as_deref().unwrap_or_default()
    }

    /// How the factors start.
    pub fn init(&self) -> LoraInit {
        self.settings.init
    }

    /// Whether the adapted linear layers store their weights as `[in, out]`.
    pub fn fan_in_fan_out(&self) -> bool {
        self.settings.fan_in_fan_out
    }

    /// The scaling of a layer with this rank and alpha.
    pub fn scaling(&self, rank: usize, alpha: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
        let rank = rank as f64;
        if self.settings.use_rslora { alpha / rank.sqrt() } else { alpha / rank }
    }
}
