//! The config of LoHa: <https://arxiv.org/abs/2108.06098>.

use serde::{Deserialize, Serialize};

use crate::config::{truth, yes};
use crate::method::AdapterConfig;
use crate::method::weight_delta::DeltaSettings;

/// The config of a LoHa adapter: `ΔW = alpha / rank · (A₁·B₁) ∘ (A₂·B₂)`, whose rank is up to the square of the
/// factors' rank.
///
/// ```
/// use peft_runtime::LohaConfig;
///
/// let config = LohaConfig::new(8, 16.0).with_targets(["q_proj", "v_proj"]);
/// assert_eq!(LohaConfig::from_json(&config.to_json()?)?, config);
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub type LohaConfig = AdapterConfig<LohaSettings>;

/// LoHa's settings.
pub type LohaSettings = DeltaSettings<LohaStart>;

/// The settings that only LoHa's config has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LohaStart {
    #[serde(default = "yes", deserialize_with = "truth")]
    pub(super) init_weights: bool,
}

impl Default for LohaStart {
    fn default() -> Self {
        Self { init_weights: true }
    }
}

impl LohaConfig {
    /// Whether a fresh adapter changes nothing; a random one, which changes the output, is meant for tests.
    #[must_use]
    pub fn with_init(mut self, zeros: bool) -> Self {
        self.settings.own.init_weights = zeros;
        self
    }
}
