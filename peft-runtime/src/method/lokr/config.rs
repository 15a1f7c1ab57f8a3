//! The config of LoKr: <https://arxiv.org/abs/2309.14859>.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::config::{
    ConfigFault, PatternMap, as_number, as_numbers, finite_fault, probability_fault, rank_fault,
};
use crate::error::{Fault, Result};
use crate::method::AdapterConfig;
use crate::path::ModulePath;

/// The config of a LoKr adapter: `ΔW = alpha / rank · W₁ ⊗ W₂`, a Kronecker product of two small matrices, each of them whole
/// or a product of factors of the rank.
///
/// ```
/// use peft_runtime::LokrConfig;
///
/// let config = LokrConfig::new(8, 16.0).with_decompose_factor(4).with_targets(["q_proj", "v_proj"]);
/// assert_eq!(LokrConfig::from_json(&config.to_json()?)?, config);
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub type LokrConfig = AdapterConfig<LokrSettings>;

/// What only LoKr's config has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LokrSettings {
    #[serde(rename = "r", default = "default_rank")]
    pub(super) rank: usize,
    #[serde(default = "default_alpha", serialize_with = "as_number")]
    pub(super) alpha: f64,
    #[serde(default)]
    pub(super) rank_dropout: f64,
    #[serde(default)]
    pub(super) module_dropout: f64,
    #[serde(default)]
    pub(super) rank_dropout_scale: bool,
    #[serde(default)]
    pub(super) use_effective_conv2d: bool,
    #[serde(default)]
    pub(super) decompose_both: bool,
    #[serde(default = "no_factor")]
    pub(super) decompose_factor: i64,
    #[serde(default)]
    pub(super) init_weights: LokrInit,
    #[serde(default)]
    pub(super) rank_pattern: PatternMap<usize>,
    #[serde(default, serialize_with = "as_numbers")]
    pub(super) alpha_pattern: PatternMap<f64>,
}

/// How the matrices of a fresh LoKr adapter start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LokrInit {
    /// W₁ is zero: the fresh adapter changes nothing. PEFT's `true`.
    #[default]
    Default,
    /// W₂ is zero, as in LyCORIS: the fresh adapter changes nothing. PEFT's `"lycoris"`.
    Lycoris,
    /// Both are random: the fresh adapter changes the output. PEFT's `false`, meant for tests.
    Random,
}

impl Serialize for LokrInit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Default => serializer.serialize_bool(true),
            Self::Lycoris => serializer.serialize_str("lycoris"),
            Self::Random => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for LokrInit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Bool(true) => Ok(Self::Default),
            Value::Null | Value::Bool(false) => Ok(Self::Random),
            Value::String(name) if name == "lycoris" => Ok(Self::Lycoris),
            value => Err(serde::de::Error::custom(format!(
                "`init_weights` = {value} is not supported; supported are true, false and \"lycoris\""
            ))),
        }
    }
}

fn default_rank() -> usize {
    8
}

fn default_alpha() -> f64 {
    8.0
}

fn no_factor() -> i64 {
    -1
}

impl Default for LokrSettings {
    /// PEFT's defaults: rank 8, alpha 8.
    fn default() -> Self {
        Self {
            rank: default_rank(),
            alpha: default_alpha(),
            rank_dropout: 0.0,
            module_dropout: 0.0,
            rank_dropout_scale: false,
            use_effective_conv2d: false,
            decompose_both: false,
            decompose_factor: no_factor(),
            init_weights: LokrInit::Default,
            rank_pattern: PatternMap::default(),
            alpha_pattern: PatternMap::default(),
        }
    }
}

impl LokrConfig {
    /// A config with the given rank and alpha and PEFT's defaults for the rest.
    pub fn new(rank: usize, alpha: f64) -> Self {
        Self::of(LokrSettings { rank, alpha, ..LokrSettings::default() })
    }

    /// Drops rows of ΔW with this probability in each training pass.
    #[must_use]
    pub fn with_rank_dropout(mut self, probability: f64) -> Self {
        self.settings.rank_dropout = probability;
        self
    }

    /// Whether the rows that `rank_dropout` leaves are divided by their share.
    #[must_use]
    pub fn with_rank_dropout_scale(mut self, scales: bool) -> Self {
        self.settings.rank_dropout_scale = scales;
        self
    }

    /// Leaves the adapter of a layer out with this probability in each training pass.
    #[must_use]
    pub fn with_module_dropout(mut self, probability: f64) -> Self {
        self.settings.module_dropout = probability;
        self
    }

    /// Gives W₂ of convolutions with a window the form with a core tensor, which has fewer parameters.
    #[must_use]
    pub fn with_effective_conv2d(mut self, effective: bool) -> Self {
        self.settings.use_effective_conv2d = effective;
        self
    }

    /// Makes W₁ a product of factors too, where that has fewer parameters.
    #[must_use]
    pub fn with_decompose_both(mut self, both: bool) -> Self {
        self.settings.decompose_both = both;
        self
    }

    /// The number of rows and columns of W₁, as near as the sides of the weight allow; without it, the one that makes both
    /// matrices most alike in size.
    #[must_use]
    pub fn with_decompose_factor(mut self, factor: usize) -> Self {
        self.settings.decompose_factor = i64::try_from(factor).unwrap_or(i64::MAX);
        self
    }

    /// How the matrices start.
    #[must_use]
    pub fn with_init(mut self, init: LokrInit) -> Self {
        self.settings.init_weights = init;
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

impl LokrSettings {
    /// The number that the sides of W₁ are near to, if there is one.
    pub(super) fn factor(&self) -> Option<usize> {
        usize::try_from(self.decompose_factor).ok()
    }

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
        if self.decompose_factor == 0 || self.decompose_factor < no_factor() {
            let reason =
                format!("the factor is {}; it must be at least 1, or -1 for none", self.decompose_factor);
            faults.push(("decompose_factor", reason));
        }
        faults
    }
}
