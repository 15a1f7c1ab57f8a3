//! transformers' Llama, in a tiny size.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use peft_runtime::models::llama::{LlamaConfig, LlamaModel};
use peft_runtime::prelude::*;

use super::CaseModel;

/// `LlamaForCausalLM(config)`.
#[derive(Injectable)]
#[peft(transparent)]
pub(super) struct TinyLlama(LlamaModel);

impl CaseModel for TinyLlama {
    type Config = LlamaConfig;

    fn build(config: &LlamaConfig, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self(LlamaModel::new(config, vb)?))
    }

    fn output(&self, x: &Tensor, attention_mask: Option<&Tensor>) -> Result<Tensor> {
        self.0.forward(x, attention_mask)
    }
}
