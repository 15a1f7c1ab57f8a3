//! The model that all three programs share.

use candle_core::{Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder};
use peft_runtime::nn;
use peft_runtime::prelude::*;

/// A curve: one number in, one number out.
#[derive(Injectable)]
#[peft(target = ["hidden", "output"])]
pub struct Curve {
    input: Adapted<Linear>,
    hidden: Adapted<Linear>,
    output: Adapted<Linear>,
}

impl Curve {
    pub fn new(vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            input: nn::linear(1, 64, vb.pp("input"))?,
            hidden: nn::linear(64, 64, vb.pp("hidden"))?,
            output: nn::linear(64, 1, vb.pp("output"))?,
        })
    }
}

impl Module for Curve {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.input.forward(x)?.tanh()?;
        let x = self.hidden.forward(&x)?.tanh()?;
        self.output.forward(&x)
    }
}
