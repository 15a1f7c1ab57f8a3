//! transformers' language models, in tiny sizes.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use peft_runtime::models::bert::{BertConfig, BertModel};
use peft_runtime::prelude::*;

use super::CaseModel;

/// `BertModel(config, add_pooling_layer=False)`.
#[derive(Injectable)]
#[peft(transparent)]
pub(super) struct TinyBert(BertModel);

impl CaseModel for TinyBert {
    type Config = BertConfig;

    fn build(config: &BertConfig, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self(BertModel::new(config, vb)?))
    }

    fn output(&self, x: &Tensor, attention_mask: Option<&Tensor>) -> Result<Tensor> {
        self.0.forward(x, None, attention_mask)
    }
}
