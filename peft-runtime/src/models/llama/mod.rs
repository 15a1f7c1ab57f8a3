//! Llama and its relatives: Llama 1 to 3 (<https://arxiv.org/abs/2407.21783>), SmolLM2, Mistral, Qwen 2, 2.5 and 3.

mod block;
mod config;
mod config_file;
mod gguf;
mod gguf_base;
mod gguf_merge;
mod gguf_metadata;
mod reading;
mod rope;
mod weights;

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Error as CandleError, Result, Tensor, bail};
use candle_nn::{Embedding, Linear, Module, RmsNorm, VarBuilder};

use block::{Block, Context};
use rope::Rotary;
use weights::{Quantizing, Weights};

use super::causal::next_token_loss;
use super::generate::{CausalModel, KvCache};
use crate::layer::{Adapted, AnyLinear, Layer};
use crate::nn;

pub use config::{Architecture, LlamaConfig};
pub use gguf_merge::MergedGguf;
pub use rope::RopeScaling;

/// A language model of the Llama family: token ids in, the logits of each next token out.
///
/// ```no_run
/// use candle_core::{DType, Device};
/// use peft_runtime::models::llama::LlamaModel;
/// use peft_runtime::prelude::*;
///
/// let mut model = LlamaModel::from_folder("path/to/model", DType::F32, &Device::Cpu)?;
/// model.inject_adapter(&LoraConfig::new(8, 16.0).with_targets(targets!(LlamaModel; "q_proj", "v_proj")), "default")?;
/// # Ok::<(), peft_runtime::Error>(())
/// ```
#[derive(Clone, Debug, crate::Injectable)]
#[peft(
    crate = "crate",
    model_type = self.config.architecture,
    input_embedding = "embed_tokens",
    output_embedding = "lm_head"
)]
pub struct LlamaModel {
    model: Decoder,
    lm_head: Adapted<AnyLinear>,
    #[peft(skip)]
    config: LlamaConfig,
    #[peft(skip)]
    rotary: Rotary,
    #[peft(skip)]
    gradient_checkpointing: bool,
}

#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate")]
struct Decoder {
    embed_tokens: Adapted<Embedding>,
    layers: Vec<Block>,
    norm: Adapted<RmsNorm>,
}

impl LlamaModel {
    /// Builds the model from the tensors of a builder.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(config: &LlamaConfig, mut vb: VarBuilder<'_>) -> Result<Self> {
        Self::build(config.clone(), &mut vb)
    }

    /// Builds the model from the tensors of a builder, with the weights of linear layers quantized as
    /// [`from_folder_quantized`](Self::from_folder_quantized) does.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or a layer's number of inputs is not a multiple of the type's block size.
    pub fn new_quantized(config: &LlamaConfig, vb: VarBuilder<'_>, dtype: GgmlDType) -> Result<Self> {
        Self::build(config.clone(), &mut Quantizing { vb, dtype })
    }

    fn build(config: LlamaConfig, weights: &mut impl Weights) -> Result<Self> {
        let (vocabulary, size) = (config.vocab_size, config.hidden_size);
        let embed_tokens = weights.embedding("model.embed_tokens", vocabulary, size)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Block::new(&config, &format!("model.layers.{index}"), weights))
            .collect::<Result<_>>()?;
        let norm = weights.rms_norm("model.norm", size, config.rms_norm_eps)?;
        let lm_head = if config.tie_word_embeddings {
            let table = embed_tokens.base().embeddings().clone();
            Adapted::new(AnyLinear::from(Linear::new(table, None)))
        } else {
            weights.linear("lm_head", size, vocabulary, false)?
        };
        let rotary = Rotary::new(config.rope_theta, config.head_dim, &config.rope_scaling);
        let model = Decoder { embed_tokens, layers, norm };
        Ok(Self { model, lm_head, config, rotary, gradient_checkpointing: false })
    }

    /// The settings.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Makes quantized layers dense, in the precision of the token embedding; adapters stay, and can then be merged.
    ///
    /// # Errors
    /// If a device operation fails; some layers may be dense then, which does not change what the model computes.
    pub fn dequantize(&mut self) -> Result<()> {
        let dtype = self.model.embed_tokens.base().embeddings().dtype();
        let layers = self.model.layers.iter_mut().flat_map(Block::linear_layers_mut);
        for layer in layers.chain([&mut self.lm_head]) {
            layer.dequantize()?;
            layer.map_parameters(&mut |_, own| Ok(own.to_dtype(dtype)?)).map_err(CandleError::wrap)?;
        }
        Ok(())
    }

    /// Whether training keeps only the input of each block and computes the block again in the backward pass, which
    /// takes less memory and more time. Off by default.
    pub fn set_gradient_checkpointing(&mut self, on: bool) {
        self.gradient_checkpointing = on;
    }

    /// The logits of each next token, `[batch, length, vocabulary]`.
    ///
    /// `input_ids` have the shape `[batch, length]`; the attention mask too, with 1 for tokens and 0 for padding, which
    /// belongs on the right: positions are counted from the left.
    ///
    /// # Errors
    /// If the shapes do not fit, or the sequence is longer than the model's sliding window.
    pub fn forward(&self, input_ids: &Tensor, attention_mask: Option<&Tensor>) -> Result<Tensor> {
        self.lm_head.forward(&self.hidden_states(input_ids, attention_mask)?)
    }

    /// The hidden states after the last norm, `[batch, length, hidden]`, for ids and a mask as [`forward`](Self::forward)
    /// takes them.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn hidden_states(&self, input_ids: &Tensor, attention_mask: Option<&Tensor>) -> Result<Tensor> {
        self.decode(input_ids, attention_mask, None)
    }

    /// The mean cross-entropy of the next tokens, a scalar.
    ///
    /// `labels` have the shape of `input_ids`, `[batch, length]`, and are usually the same: each token has to predict
    /// the label after it. The label -100 does not count, so use it where a row is padded on the right.
    ///
    /// # Errors
    /// If the shapes do not fit, or there is no next token.
    pub fn loss(&self, input_ids: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let hidden = self.hidden_states(input_ids, None)?;
        next_token_loss(&self.lm_head, &hidden, labels)
    }

    fn decode(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        mut cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let (_, length) = input_ids.dims2()?;
        let start = cache.as_ref().map_or(0, |cache| cache.length());
        self.check_window(start + length)?;
        let mut hidden = self.model.embed_tokens.forward(input_ids)?;
        let (cos, sin) = self.rotary.at(start, length, hidden.dtype(), hidden.device())?;
        let context = Context { cos, sin, mask: attention_mask.cloned() };
        for (index, block) in self.model.layers.iter().enumerate() {
            hidden = match cache.as_deref_mut() {
                Some(cache) => block.forward(&hidden, &context, Some((cache, index)))?,
                None => self.run_block(block, &hidden, &context)?,
            };
        }
        self.model.norm.forward(&hidden)
    }

    /// A window that no token of the sequence looks beyond has no effect.
    fn check_window(&self, length: usize) -> Result<()> {
        match self.config.sliding_window {
            Some(window) if length > window => {
                bail!(
                    "{length} tokens are more than the model's sliding window of {window}, which is not supported"
                )
            }
            _ => Ok(()),
        }
    }

    /// One block of a forward pass that may be part of training.
    fn run_block(&self, block: &Block, hidden: &Tensor, context: &Context) -> Result<Tensor> {
        if !self.gradient_checkpointing {
            return block.forward(hidden, context, None);
        }
        let context = context.clone();
        nn::recomputed(block, hidden, move |block, hidden| block.forward(hidden, &context, None))
    }
}

impl CausalModel for LlamaModel {
    fn new_cache(&self) -> KvCache {
        KvCache::new(self.model.layers.len())
    }

    fn next_logits(&self, input_ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let hidden = self.decode(input_ids, None, Some(cache))?;
        let last = hidden.dim(1)?.saturating_sub(1);
        self.lm_head.forward(&hidden.narrow(1, last, 1)?.squeeze(1)?)
    }

    fn device(&self) -> &Device {
        self.model.embed_tokens.base().embeddings().device()
    }
}
