//! The settings of EVA: <https://arxiv.org/abs/2410.07170>.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{ConfigFault, yes};

/// How EVA distributes ranks and computes A from the inputs of layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaConfig {
    /// The largest multiple of its own rank that a layer can get; at least 1.
    #[serde(default = "default_rho")]
    pub rho: f64,
    /// PEFT's threshold for convergence; the computation here is exact and does not need it.
    #[serde(default = "default_tau")]
    pub tau: f64,
    /// PEFT's switch for masking by labels; here the caller decides what the batches contain.
    #[serde(default = "yes")]
    pub use_label_mask: bool,
    /// PEFT's label that marks masked tokens.
    #[serde(default = "default_label")]
    pub label_mask_value: Value,
    /// Whether directions are divided by the square root of their singular values.
    #[serde(default)]
    pub whiten: bool,
    /// Whether alpha follows a layer's new rank, so that its scaling stays the same.
    #[serde(default = "yes")]
    pub adjust_scaling_factors: bool,
}

fn default_rho() -> f64 {
    2.0
}

fn default_tau() -> f64 {
    0.99
}

fn default_label() -> Value {
    Value::from(-100)
}

impl Default for EvaConfig {
    fn default() -> Self {
        Self {
            rho: default_rho(),
            tau: default_tau(),
            use_label_mask: true,
            label_mask_value: default_label(),
            whiten: false,
            adjust_scaling_factors: true,
        }
    }
}

impl EvaConfig {
    pub(crate) fn fault(&self) -> Option<ConfigFault> {
        if self.rho.is_nan() || self.rho < 1.0 {
            return Some(("eva_config", format!("rho is {}; it must be at least 1", self.rho)));
        }
        let valid = (0.0..=1.0).contains(&self.tau);
        (!valid).then(|| ("eva_config", format!("tau is {}; it must be between 0 and 1", self.tau)))
    }
}
