//! The activations that configs name.

use candle_core::{Result, Tensor};
use serde::Deserialize;

use crate::nn;

/// The activation of the feed-forward layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// `x·Φ(x)`.
    #[default]
    Gelu,
    /// The tanh approximation of `x·Φ(x)`.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
    /// `max(x, 0)`.
    Relu,
}

impl HiddenAct {
    /// Applies the activation to each element.
    pub(super) fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => nn::gelu_erf(x),
            Self::GeluNew => nn::gelu(x),
            Self::Relu => x.relu(),
        }
    }
}
