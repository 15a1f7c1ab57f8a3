//! transformers' GPT-2, in a tiny size.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use peft_runtime::models::gpt2::{Gpt2Config, Gpt2Model};
use peft_runtime::prelude::*;

use super::CaseModel;

/// `GPT2LMHeadModel(config)`.
#[derive(Injectable)]
#[peft(transparent)]
pub(super) struct TinyGpt2(Gpt2Model);

impl CaseModel for TinyGpt2 {
    type Config = Gpt2Config;

    fn build(config: &Gpt2Config, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self(Gpt2Model::new(config, vb)?))
    }

    fn output(&self, x: &Tensor, attention_mask: Option<&Tensor>) -> Result<Tensor> {
        self.0.forward(x, attention_mask)
    }
}
