//! The config of LoHa: <https://arxiv.org/abs/2108.06098>.

use serde::{Deserialize, Serialize};

use crate::config::{
    ConfigFault, PatternMap, as_number, as_numbers, finite_fault, probability_fault, rank_fault, truth, yes,
};
use crate::error::{Fault, Result};
use crate::method::AdapterConfig;
use crate::path::ModulePath;

/// The config of a LoHa adapter: `ΔW = alpha / rank · (A₁·B₁) ∘ (A₂·B₂)`, whose rank is up to the square of the factors'.
///
/// ```
/// use peft_runtime::LohaConfig;
///
/// let config = LohaConfig::new(8, 16.0).with_targets(["q_proj", "v_proj"]);
/// assert_eq!(LohaConfig::from_json(&config.to_json()?)?, config);
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub type LohaConfig = AdapterConfig<LohaSettings>;

/// What only LoHa's config has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LohaSettings {
    #[serde(rename = "r", default = "default_rank")]
    pub(super) rank: usize,
    #[serde(default = "default_alpha", serialize_with = "as_number")]
    pub(super) alpha: f64,
    #[serde(default)]
    pub(super) rank_dropout: f64,
    #[serde(default)]
    pub(super) module_dropout: f64,
    #[serde(default)]
    pub(super) use_effective_conv2d: bool,
    #[serde(default = "yes", deserialize_with = "truth")]
    pub(super) init_weights: bool,
    #[serde(default)]
    pub(super) rank_pattern: PatternMap<usize>,
    #[serde(default, serialize_with = "as_numbers")]
    pub(super) alpha_pattern: PatternMap<f64>,
}

fn default_rank() -> usize {
    8
}

fn default_alpha() -> f64 {
    8.0
}

impl Default for LohaSettings {
    /// PEFT's defaults: rank 8, alpha 8.
    fn default() -> Self {
        Self {
            rank: default_rank(),
            alpha: default_alpha(),
            rank_dropout: 0.0,
            module_dropout: 0.0,
            use_effective_conv2d: false,
            init_weights: true,
            rank_pattern: PatternMap::default(),
            alpha_pattern: PatternMap::default(),
        }
    }
}

impl LohaConfig {
    /// A config with the given rank and alpha and PEFT's defaults for the rest.
    pub fn new(rank: usize, alpha: f64) -> Self {
        Self::of(LohaSettings { rank, alpha, ..LohaSettings::default() })
    }

    /// Drops rows of ΔW with this probability in each training pass; the rows that are left are divided by their share.
    #[must_use]
    pub fn with_rank_dropout(mut self, probability: f64) -> Self {
        self.settings.rank_dropout = probability;
        self
    }

    /// Leaves the adapter of a layer out with this probability in each training pass.
    #[must_use]
    pub fn with_module_dropout(mut self, probability: f64) -> Self {
        self.settings.module_dropout = probability;
        self
    }

    /// Gives convolutions with a window the form with a core tensor, which has fewer parameters.
    #[must_use]
    pub fn with_effective_conv2d(mut self, effective: bool) -> Self {
        self.settings.use_effective_conv2d = effective;
        self
    }

    /// Whether a fresh adapter changes nothing; a random one, which changes the output, is meant for tests.
    #[must_use]
    pub fn with_init(mut self, zeros: bool) -> Self {
        self.settings.init_weights = zeros;
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

    /// The rank where no pattern says otherwise.
    pub fn rank(&self) -> usize {
        self.settings.rank
    }

    /// Alpha where no pattern says otherwise.
    pub fn alpha(&self) -> f64 {
        self.settings.alpha
    }

    /// The rank and scaling of the layer at `path`.
    pub(super) fn size_at(&self, path: &ModulePath) -> Result<(usize, f64), Fault> {
        let settings = &self.settings;
        let rank = settings.rank_pattern.value("rank_pattern", path.as_str(), settings.rank)?;
        let alpha = settings.alpha_pattern.value("alpha_pattern", path.as_str(), settings.alpha)?;
        #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
        Ok((rank, alpha / rank as f64))
    }
}

impl LohaSettings {
    /// All that is wrong with the values.
    pub(super) fn faults(&self) -> Vec<ConfigFault> {
        let mut faults: Vec<ConfigFault> = rank_fault("r", self.rank).into_iter().collect();
        faults.extend(finite_fault("alpha", self.alpha));
        faults.extend(probability_fault("rank_dropout", self.rank_dropout));
        faults.extend(probability_fault("module_dropout", self.module_dropout));
        faults.extend(self.rank_pattern.faults("rank_pattern", |rank| rank_fault("rank_pattern", *rank)));
        faults.extend(
            self.alpha_pattern.faults("alpha_pattern", |alpha| finite_fault("alpha_pattern", *alpha)),
        );
        faults
    }
}
