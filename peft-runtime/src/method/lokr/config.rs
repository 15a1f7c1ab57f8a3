//! The config of LoKr: <https://arxiv.org/abs/2309.14859>.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::config::{ConfigFault, is_unset, switch};
use crate::method::AdapterConfig;
use crate::method::weight_delta::DeltaSettings;

/// The config of a LoKr adapter: `ΔW = alpha / rank · W₁ ⊗ W₂`, a Kronecker product of two small matrices, each of them
/// stored whole or as a product of factors with the given rank.
///
/// ```
/// use peft_runtime::LokrConfig;
///
/// let config = LokrConfig::new(8, 16.0).with_decompose_factor(4).with_targets(["q_proj", "v_proj"]);
/// assert_eq!(LokrConfig::from_json(&config.to_json()?)?, config);
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub type LokrConfig = AdapterConfig<LokrSettings>;

/// LoKr's settings.
pub type LokrSettings = DeltaSettings<LokrShape>;

/// The settings that only LoKr's config has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LokrShape {
    #[serde(default, deserialize_with = "switch")]
    pub(super) rank_dropout_scale: bool,
    #[serde(default, deserialize_with = "switch")]
    pub(super) decompose_both: bool,
    #[serde(default = "no_factor")]
    decompose_factor: i64,
    #[serde(default)]
    pub(super) init_weights: LokrInit,
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
            value if is_unset(&value) => Ok(Self::Random),
            Value::String(name) if name == "lycoris" => Ok(Self::Lycoris),
            value => Err(serde::de::Error::custom(format!(
                "{value} is not supported; supported are true, false and \"lycoris\""
            ))),
        }
    }
}

fn no_factor() -> i64 {
    -1
}

impl Default for LokrShape {
    fn default() -> Self {
        Self {
            rank_dropout_scale: false,
            decompose_both: false,
            decompose_factor: no_factor(),
            init_weights: LokrInit::Default,
        }
    }
}

impl LokrConfig {
    /// Whether the rows that `rank_dropout` keeps are divided by the share of rows kept.
    #[must_use]
    pub fn with_rank_dropout_scale(mut self, scales: bool) -> Self {
        self.settings.own.rank_dropout_scale = scales;
        self
    }

    /// Makes W₁ a product of factors too, if that has fewer parameters.
    #[must_use]
    pub fn with_decompose_both(mut self, both: bool) -> Self {
        self.settings.own.decompose_both = both;
        self
    }

    /// The number of rows and columns of W₁, as close as the dimensions of the weight allow; without it, the number
    /// that makes the two matrices closest in size.
    #[must_use]
    pub fn with_decompose_factor(mut self, factor: usize) -> Self {
        self.settings.own.decompose_factor = i64::try_from(factor).unwrap_or(i64::MAX);
        self
    }

    /// How the matrices start.
    #[must_use]
    pub fn with_init(mut self, init: LokrInit) -> Self {
        self.settings.own.init_weights = init;
        self
    }
}

impl LokrShape {
    /// The number that the dimensions of W₁ are close to, if there is one.
    pub(super) fn factor(&self) -> Option<usize> {
        usize::try_from(self.decompose_factor).ok()
    }

    /// What is wrong with the values.
    pub(super) fn fault(&self) -> Option<ConfigFault> {
        let factor = self.decompose_factor;
        let valid = factor > 0 || factor == no_factor();
        (!valid).then(|| {
            let reason = format!("the factor is {factor}; it must be at least 1, or -1 for none");
            ("decompose_factor", reason)
        })
    }
}
