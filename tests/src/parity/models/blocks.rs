//! Blocks of a gated attention without positions and a feed-forward layer.

use candle_core::{Result, Tensor};
use candle_nn::{Embedding, Linear, Module, VarBuilder};
use peft_runtime::nn;
use peft_runtime::prelude::*;
use serde::Deserialize;

use super::CaseModel;

/// `embed` → `layers` → `lm_head`.
#[derive(Injectable)]
pub(super) struct Blocks {
    embed: Adapted<Embedding>,
    layers: Vec<Block>,
    lm_head: Adapted<Linear>,
}

#[derive(Injectable)]
struct Block {
    attn: Attention,
    mlp: FeedForward,
}

#[derive(Injectable)]
struct Attention {
    q_proj: Adapted<Linear>,
    k_proj: Adapted<Linear>,
    v_proj: Adapted<Linear>,
    o_proj: Adapted<Linear>,
}

#[derive(Injectable)]
struct FeedForward {
    up_proj: Adapted<Linear>,
    down_proj: Adapted<Linear>,
}

/// The sizes of [`Blocks`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BlocksConfig {
    vocab: usize,
    d: usize,
    ff: usize,
    layers: usize,
}

impl Block {
    fn build(config: &BlocksConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let (d, ff) = (config.d, config.ff);
        let attn = |name: &str| nn::linear_no_bias(d, d, vb.pp("attn").pp(name));
        let (q_proj, k_proj, v_proj, o_proj) =
            (attn("q_proj")?, attn("k_proj")?, attn("v_proj")?, attn("o_proj")?);
        let mlp = vb.pp("mlp");
        let (up_proj, down_proj) =
            (nn::linear(d, ff, mlp.pp("up_proj"))?, nn::linear(ff, d, mlp.pp("down_proj"))?);
        Ok(Self {
            attn: Attention { q_proj, k_proj, v_proj, o_proj },
            mlp: FeedForward { up_proj, down_proj },
        })
    }

    fn forward(&self, h: &Tensor) -> Result<Tensor> {
        let gate = (self.attn.q_proj.forward(h)? + self.attn.k_proj.forward(h)?)?.tanh()?;
        let h = (h + self.attn.o_proj.forward(&(gate * self.attn.v_proj.forward(h)?)?)?)?;
        &h + self.mlp.down_proj.forward(&self.mlp.up_proj.forward(&h)?.relu()?)?
    }
}

impl CaseModel for Blocks {
    type Config = BlocksConfig;

    fn build(config: &BlocksConfig, vb: VarBuilder<'_>) -> Result<Self> {
        let layers = vb.pp("layers");
        Ok(Self {
            embed: nn::embedding(config.vocab, config.d, vb.pp("embed"))?,
            layers: (0..config.layers).map(|i| Block::build(config, &layers.pp(i))).collect::<Result<_>>()?,
            lm_head: nn::linear_no_bias(config.d, config.vocab, vb.pp("lm_head"))?,
        })
    }

    fn output(&self, x: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        let mut h = self.embed.forward(x)?;
        for layer in &self.layers {
            h = layer.forward(&h)?;
        }
        self.lm_head.forward(&h)
    }
}
