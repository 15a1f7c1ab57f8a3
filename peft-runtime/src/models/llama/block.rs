//! One block: attention and a gated feed-forward layer, each behind a norm and with a residual connection.

use candle_core::{Result, Tensor};
use candle_nn::{Module, RmsNorm};

use super::config::LlamaConfig;
use super::weights::Weights;
use crate::layer::{Adapted, AnyLinear};
use crate::models::cache::KvCache;
use crate::nn::{self, AttentionOptions};
use crate::ops::graph::carried::reshaped;

/// What all blocks of one forward pass share.
#[derive(Clone, Debug)]
pub(super) struct Context {
    /// The cosines of the angles of the new positions, `[length, head size / 2]`.
    pub(super) cos: Tensor,
    /// Their sines.
    pub(super) sin: Tensor,
    /// 1 for tokens and 0 for padding, `[batch, keys]`.
    pub(super) mask: Option<Tensor>,
}

#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate")]
pub(super) struct Block {
    self_attn: SelfAttention,
    mlp: FeedForward,
    input_layernorm: Adapted<RmsNorm>,
    post_attention_layernorm: Adapted<RmsNorm>,
}

#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate")]
struct SelfAttention {
    q_proj: Adapted<AnyLinear>,
    k_proj: Adapted<AnyLinear>,
    v_proj: Adapted<AnyLinear>,
    o_proj: Adapted<AnyLinear>,
    q_norm: Option<Adapted<RmsNorm>>,
    k_norm: Option<Adapted<RmsNorm>>,
    heads: usize,
    key_value_heads: usize,
    head_dim: usize,
}

#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate")]
struct FeedForward {
    gate_proj: Adapted<AnyLinear>,
    up_proj: Adapted<AnyLinear>,
    down_proj: Adapted<AnyLinear>,
}

impl Block {
    /// The block called `name`.
    pub(super) fn new(config: &LlamaConfig, name: &str, weights: &mut impl Weights) -> Result<Self> {
        let (size, eps) = (config.hidden_size, config.rms_norm_eps);
        Ok(Self {
            self_attn: SelfAttention::new(config, &format!("{name}.self_attn"), weights)?,
            mlp: FeedForward::new(config, &format!("{name}.mlp"), weights)?,
            input_layernorm: weights.rms_norm(&format!("{name}.input_layernorm"), size, eps)?,
            post_attention_layernorm: weights.rms_norm(
                &format!("{name}.post_attention_layernorm"),
                size,
                eps,
            )?,
        })
    }

    /// The hidden states after the block, `[batch, length, size]`; a cache comes with the block's index in it.
    pub(super) fn forward(
        &self,
        hidden: &Tensor,
        context: &Context,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Result<Tensor> {
        let hidden =
            self.self_attn.forward(&self.input_layernorm.forward(hidden)?, hidden, context, cache)?;
        self.mlp.forward(&self.post_attention_layernorm.forward(&hidden)?, &hidden)
    }

    /// The block's linear layers, in order.
    pub(super) fn linear_layers_mut(&mut self) -> [&mut Adapted<AnyLinear>; 7] {
        let SelfAttention { q_proj, k_proj, v_proj, o_proj, .. } = &mut self.self_attn;
        let FeedForward { gate_proj, up_proj, down_proj } = &mut self.mlp;
        [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
    }
}

impl SelfAttention {
    fn new(config: &LlamaConfig, name: &str, weights: &mut impl Weights) -> Result<Self> {
        let (size, head_dim, eps) = (config.hidden_size, config.head_dim, config.rms_norm_eps);
        let (heads, key_value_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let (wide, narrow, bias) = (heads * head_dim, key_value_heads * head_dim, config.qkv_bias);
        let (q_norm, k_norm) = if config.architecture.has_head_norms() {
            let q_norm = weights.rms_norm(&format!("{name}.q_norm"), head_dim, eps)?;
            (Some(q_norm), Some(weights.rms_norm(&format!("{name}.k_norm"), head_dim, eps)?))
        } else {
            (None, None)
        };
        Ok(Self {
            q_proj: weights.linear(&format!("{name}.q_proj"), size, wide, bias)?,
            k_proj: weights.linear(&format!("{name}.k_proj"), size, narrow, bias)?,
            v_proj: weights.linear(&format!("{name}.v_proj"), size, narrow, bias)?,
            o_proj: weights.linear(&format!("{name}.o_proj"), wide, size, config.output_bias)?,
            q_norm,
            k_norm,
            heads,
            key_value_heads,
            head_dim,
        })
    }

    /// `residual` plus the output of attention on `x`.
    fn forward(
        &self,
        x: &Tensor,
        residual: &Tensor,
        context: &Context,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Result<Tensor> {
        let (batch, length, _) = x.dims3()?;
        let split =
            |projected: Tensor, heads: usize| reshaped(&projected, (batch, length, heads, self.head_dim));
        let query = normed(self.q_norm.as_ref(), split(self.q_proj.forward(x)?, self.heads)?)?;
        let key = normed(self.k_norm.as_ref(), split(self.k_proj.forward(x)?, self.key_value_heads)?)?;
        let value = split(self.v_proj.forward(x)?, self.key_value_heads)?;
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let options = AttentionOptions { scale, causal: true, mask: context.mask.as_ref(), dropout: None };
        let (cos, sin) = (&context.cos, &context.sin);
        let attended = match cache {
            // The cache holds keys that are rotated already.
            Some((cache, place)) => {
                let (query, key) = (nn::rotary(&query, cos, sin)?, nn::rotary(&key, cos, sin)?);
                let (key, value) = cache.append(place, &key, &value)?;
                nn::attention(&query, &key, &value, &options)?
            }
            None => nn::rotary_attention(&query, &key, &value, cos, sin, &options)?,
        };
        let attended = reshaped(&attended, (batch, length, self.heads * self.head_dim))?;
        self.o_proj.forward_add(&attended, residual)
    }
}

/// The heads after their norm, where there is one.
fn normed(norm: Option<&Adapted<RmsNorm>>, heads: Tensor) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(&heads),
        None => Ok(heads),
    }
}

impl FeedForward {
    fn new(config: &LlamaConfig, name: &str, weights: &mut impl Weights) -> Result<Self> {
        let (size, wide, bias) = (config.hidden_size, config.intermediate_size, config.mlp_bias);
        Ok(Self {
            gate_proj: weights.linear(&format!("{name}.gate_proj"), size, wide, bias)?,
            up_proj: weights.linear(&format!("{name}.up_proj"), size, wide, bias)?,
            down_proj: weights.linear(&format!("{name}.down_proj"), wide, size, bias)?,
        })
    }

    /// `residual` plus the layer's output for `x`.
    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let (gate, up) = (self.gate_proj.forward(x)?, self.up_proj.forward(x)?);
        self.down_proj.forward_swiglu_add(&gate, &up, residual)
    }
}
