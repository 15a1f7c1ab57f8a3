//! GPT-2: <https://openai.com/research/better-language-models>.

mod config;

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::{Embedding, LayerNorm, Linear, Module, VarBuilder};

use super::activation::HiddenAct;
use super::cache::KvCache;
use super::causal::next_token_loss;
use super::folder;
use super::generate::CausalModel;
use crate::layer::{Adapted, AnyLinear};
use crate::nn::{self, AttentionOptions, TransposedLinear};
use crate::ops::add_promoted;
use crate::ops::graph::carried::reshaped;
use crate::store::ModelWeights;

pub use config::Gpt2Config;

/// GPT-2 with its language-model head: token ids in, the logits of each next token out.
#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate", model_type = "gpt2", input_embedding = "wte", output_embedding = "lm_head")]
pub struct Gpt2Model {
    transformer: Transformer,
    lm_head: Adapted<AnyLinear>,
}

#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate")]
struct Transformer {
    wte: Adapted<Embedding>,
    wpe: Adapted<Embedding>,
    h: Vec<Block>,
    ln_f: Adapted<LayerNorm>,
}

#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate")]
struct Block {
    ln_1: Adapted<LayerNorm>,
    attn: Attention,
    ln_2: Adapted<LayerNorm>,
    mlp: FeedForward,
}

#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate")]
struct Attention {
    c_attn: Adapted<TransposedLinear>,
    c_proj: Adapted<TransposedLinear>,
    heads: usize,
    scale: f64,
}

#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate")]
struct FeedForward {
    c_fc: Adapted<TransposedLinear>,
    c_proj: Adapted<TransposedLinear>,
    #[peft(skip)]
    activation: HiddenAct,
}

impl Gpt2Model {
    /// Reads `config.json` and the safetensors weights of a HuggingFace folder.
    ///
    /// # Errors
    /// An error that names the file if one cannot be read or does not fit.
    pub fn from_folder(
        folder: impl AsRef<Path>,
        dtype: DType,
        device: &Device,
    ) -> crate::error::Result<Self> {
        let folder = folder.as_ref();
        let config: Gpt2Config = folder::read_config(folder)?;
        let vb = ModelWeights::open(folder)?.var_builder(dtype, device);
        Self::new(&config, vb).map_err(|error| crate::error::Error::from(error).in_file(folder))
    }

    /// Builds the model from the tensors of a builder, whose names may begin with `transformer.` or, as in the first
    /// checkpoints, without it.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or the config wants what is not supported.
    pub fn new(config: &Gpt2Config, vb: VarBuilder<'_>) -> Result<Self> {
        if config.add_cross_attention {
            bail!("`add_cross_attention` is not supported")
        }
        if config.n_head == 0 || !config.n_embd.is_multiple_of(config.n_head) {
            bail!("`n_embd` {} is not a multiple of `n_head` {}", config.n_embd, config.n_head)
        }
        let has_prefix = vb.contains_tensor("transformer.wte.weight");
        let inner = if has_prefix { vb.pp("transformer") } else { vb.clone() };
        let transformer = Transformer::new(config, &inner)?;
        let lm_head = if config.tie_word_embeddings {
            Linear::new(transformer.wte.base().embeddings().clone(), None)
        } else {
            candle_nn::linear_no_bias(config.n_embd, config.vocab_size, vb.pp("lm_head"))?
        };
        Ok(Self { transformer, lm_head: Adapted::new(AnyLinear::from(lm_head)) })
    }

    /// The logits of each next token, `[batch, length, vocabulary]`.
    ///
    /// `input_ids` have the shape `[batch, length]`; the attention mask too, with 1 for tokens and 0 for padding, which
    /// belongs on the right: positions are counted from the left.
    ///
    /// # Errors
    /// If the shapes do not fit, or the sequence is longer than the model's longest.
    pub fn forward(&self, input_ids: &Tensor, attention_mask: Option<&Tensor>) -> Result<Tensor> {
        self.lm_head.forward(&self.hidden_states(input_ids, attention_mask)?)
    }

    /// The hidden states after the last norm, `[batch, length, n_embd]`, for ids and a mask as [`forward`](Self::forward)
    /// takes them.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn hidden_states(&self, input_ids: &Tensor, attention_mask: Option<&Tensor>) -> Result<Tensor> {
        self.transformer.forward(input_ids, attention_mask, None)
    }

    /// The mean cross-entropy of the next tokens, a scalar.
    ///
    /// `labels` have the shape of `input_ids`, `[batch, length]`, and are mostly the same: each token has to foretell the
    /// label after it. The label -100 does not count, so it stands where a row is padded on the right.
    ///
    /// # Errors
    /// If the shapes do not fit, or there is no next token.
    pub fn loss(&self, input_ids: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let hidden = self.hidden_states(input_ids, None)?;
        next_token_loss(&self.lm_head, &hidden, labels)
    }
}

impl CausalModel for Gpt2Model {
    fn new_cache(&self) -> KvCache {
        KvCache::new(self.transformer.h.len())
    }

    fn next_logits(&self, input_ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let hidden = self.transformer.forward(input_ids, None, Some(cache))?;
        let last = hidden.dim(1)?.saturating_sub(1);
        self.lm_head.forward(&hidden.narrow(1, last, 1)?.squeeze(1)?)
    }

    fn device(&self) -> &Device {
        self.transformer.wte.base().embeddings().device()
    }
}

impl Transformer {
    fn new(config: &Gpt2Config, vb: &VarBuilder<'_>) -> Result<Self> {
        let (size, blocks) = (config.n_embd, vb.pp("h"));
        Ok(Self {
            wte: nn::embedding(config.vocab_size, size, vb.pp("wte"))?,
            wpe: nn::embedding(config.n_positions, size, vb.pp("wpe"))?,
            h: (0..config.n_layer)
                .map(|index| Block::new(config, index, &blocks.pp(index)))
                .collect::<Result<_>>()?,
            ln_f: nn::layer_norm(size, config.layer_norm_epsilon, vb.pp("ln_f"))?,
        })
    }

    fn forward(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        mut cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let (batch, length) = input_ids.dims2()?;
        let start = cache.as_ref().map_or(0, |cache| cache.length());
        let (end, longest) = (start + length, self.wpe.base().embeddings().dim(0)?);
        if end > longest {
            bail!("{end} tokens are more than the model's {longest} positions")
        }
        let positions = Tensor::arange(start as u32, end as u32, input_ids.device())?;
        let positions = self.wpe.forward(&positions.broadcast_as((batch, length))?.contiguous()?)?;
        let mut hidden = add_promoted(&self.wte.forward(input_ids)?, &positions)?;
        for (index, block) in self.h.iter().enumerate() {
            let place = cache.as_deref_mut().map(|cache| (cache, index));
            hidden = block.forward(&hidden, attention_mask, place)?;
        }
        self.ln_f.forward(&hidden)
    }
}

impl Block {
    fn new(config: &Gpt2Config, index: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let (size, eps) = (config.n_embd, config.layer_norm_epsilon);
        Ok(Self {
            ln_1: nn::layer_norm(size, eps, vb.pp("ln_1"))?,
            attn: Attention::new(config, index, &vb.pp("attn"))?,
            ln_2: nn::layer_norm(size, eps, vb.pp("ln_2"))?,
            mlp: FeedForward::new(config, &vb.pp("mlp"))?,
        })
    }

    fn forward(
        &self,
        hidden: &Tensor,
        mask: Option<&Tensor>,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Result<Tensor> {
        let hidden = self.attn.forward(&self.ln_1.forward(hidden)?, hidden, mask, cache)?;
        self.mlp.forward(&self.ln_2.forward(&hidden)?, &hidden)
    }
}

impl Attention {
    fn new(config: &Gpt2Config, index: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let (size, heads) = (config.n_embd, config.n_head);
        let by_size = if config.scale_attn_weights { ((size / heads) as f64).sqrt() } else { 1.0 };
        let by_block = if config.scale_attn_by_inverse_layer_idx { (index + 1) as f64 } else { 1.0 };
        Ok(Self {
            c_attn: nn::transposed_linear(size, 3 * size, vb.pp("c_attn"))?,
            c_proj: nn::transposed_linear(size, size, vb.pp("c_proj"))?,
            heads,
            scale: 1.0 / (by_size * by_block),
        })
    }

    /// The residual and what attention to `x` adds to it.
    fn forward(
        &self,
        x: &Tensor,
        residual: &Tensor,
        mask: Option<&Tensor>,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Result<Tensor> {
        let (batch, length, size) = x.dims3()?;
        let joined = reshaped(&self.c_attn.forward(x)?, (batch, length, 3, self.heads, size / self.heads))?;
        let part = |index: usize| joined.narrow(2, index, 1)?.squeeze(2);
        let (query, key, value) = (part(0)?, part(1)?, part(2)?);
        let (key, value) = match cache {
            Some((cache, place)) => cache.append(place, &key, &value)?,
            None => (key, value),
        };
        let options = AttentionOptions { scale: self.scale, causal: true, mask, dropout: None };
        let attended = nn::attention(&query, &key, &value, &options)?;
        self.c_proj.forward_add(&reshaped(&attended, (batch, length, size))?, residual)
    }
}

impl FeedForward {
    fn new(config: &Gpt2Config, vb: &VarBuilder<'_>) -> Result<Self> {
        let (size, wide) = (config.n_embd, config.n_inner.unwrap_or(4 * config.n_embd));
        Ok(Self {
            c_fc: nn::transposed_linear(size, wide, vb.pp("c_fc"))?,
            c_proj: nn::transposed_linear(wide, size, vb.pp("c_proj"))?,
            activation: config.activation_function,
        })
    }

    /// The residual and what the layer makes of `x`.
    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.c_proj.forward_add(&self.activation.forward(&self.c_fc.forward(x)?)?, residual)
    }
}
