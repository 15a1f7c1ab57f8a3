//! A convolution before a linear layer.

use candle_core::{Result, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Linear, Module, VarBuilder};
use peft_runtime::nn;
use peft_runtime::prelude::*;
use serde::Deserialize;

use super::CaseModel;
use super::mlp::NoConfig;

/// `conv1d` → relu → flatten → `lin0`.
#[derive(Injectable)]
pub(super) struct Conv1dModel {
    conv1d: Adapted<Conv1d>,
    lin0: Adapted<Linear>,
}

impl CaseModel for Conv1dModel {
    type Config = NoConfig;

    fn build(_: &NoConfig, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            conv1d: nn::conv1d(1, 1, 2, Conv1dConfig::default(), vb.pp("conv1d"))?,
            lin0: nn::linear(9, 2, vb.pp("lin0"))?,
        })
    }

    fn output(&self, x: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        let x = x.reshape((x.dim(0)?, 1, 10))?;
        self.lin0.forward(&self.conv1d.forward(&x)?.relu()?.flatten_from(1)?)
    }
}

/// `conv2d` → relu → flatten → `lin0`.
#[derive(Injectable)]
pub(super) struct Conv2dModel {
    conv2d: Adapted<Conv2d>,
    lin0: Adapted<Linear>,
}

/// The sizes of a [`Conv2dModel`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Conv2dModelConfig {
    cin: usize,
    cout: usize,
    k: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
    groups: usize,
    bias: bool,
    #[serde(rename = "h")]
    _h: usize,
    #[serde(rename = "w")]
    _w: usize,
    flat: usize,
}

impl CaseModel for Conv2dModel {
    type Config = Conv2dModelConfig;

    fn build(config: &Conv2dModelConfig, vb: VarBuilder<'_>) -> Result<Self> {
        let settings = Conv2dConfig {
            padding: config.padding,
            stride: config.stride,
            dilation: config.dilation,
            groups: config.groups,
            cudnn_fwd_algo: None,
        };
        let conv = if config.bias { nn::conv2d } else { nn::conv2d_no_bias };
        Ok(Self {
            conv2d: conv(config.cin, config.cout, config.k, settings, vb.pp("conv2d"))?,
            lin0: nn::linear(config.flat, 2, vb.pp("lin0"))?,
        })
    }

    fn output(&self, x: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        self.lin0.forward(&self.conv2d.forward(x)?.relu()?.flatten_from(1)?)
    }
}
