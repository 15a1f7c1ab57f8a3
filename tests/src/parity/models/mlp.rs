//! Two linear layers; an embedding before a transposed linear layer.

use candle_core::{Result, Tensor};
use candle_nn::{Embedding, Linear, Module, VarBuilder};
use peft_runtime::nn::{self, TransposedLinear};
use peft_runtime::prelude::*;
use serde::Deserialize;

use super::CaseModel;

/// `lin0` → relu → `lin1`.
#[derive(Injectable)]
pub(super) struct Mlp {
    lin0: Adapted<Linear>,
    lin1: Adapted<Linear>,
}

/// The sizes of an [`Mlp`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MlpConfig {
    r#in: usize,
    hidden: usize,
    out: usize,
    bias: bool,
}

impl CaseModel for Mlp {
    type Config = MlpConfig;

    fn build(config: &MlpConfig, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            lin0: nn::linear_b(config.r#in, config.hidden, config.bias, vb.pp("lin0"))?,
            lin1: nn::linear_b(config.hidden, config.out, config.bias, vb.pp("lin1"))?,
        })
    }

    fn output(&self, x: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        self.lin1.forward(&self.lin0.forward(x)?.relu()?)
    }
}

/// `emb` → `conv1d`, which is a transposed linear layer → relu → flatten → `lin0`.
#[derive(Injectable)]
pub(super) struct EmbConv1d {
    emb: Adapted<Embedding>,
    conv1d: Adapted<TransposedLinear>,
    lin0: Adapted<Linear>,
}

/// [`EmbConv1d`] has only one size.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoConfig {}

impl CaseModel for EmbConv1d {
    type Config = NoConfig;

    fn build(_: &NoConfig, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            emb: nn::embedding(100, 5, vb.pp("emb"))?,
            conv1d: nn::transposed_linear(5, 1, vb.pp("conv1d"))?,
            lin0: nn::linear(10, 2, vb.pp("lin0"))?,
        })
    }

    fn output(&self, x: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        let hidden = self.conv1d.forward(&self.emb.forward(x)?)?.relu()?;
        self.lin0.forward(&hidden.flatten_from(1)?)
    }
}
