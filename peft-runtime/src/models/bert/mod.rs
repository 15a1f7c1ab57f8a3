//! BERT: <https://arxiv.org/abs/1810.04805>.

mod batch;
mod config;

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::{Embedding, LayerNorm, Linear, Module, VarBuilder};

use super::folder;
use crate::layer::Adapted;
use crate::nn::{self, AttentionOptions, Dropout, Packing, PaddedEmbedding};
use crate::ops::graph::carried::reshaped;
use batch::Batch;

pub use super::activation::HiddenAct;
pub use config::BertConfig;

/// BERT's encoder: token ids in, one vector a token out. The pooling layer is left out.
///
/// Its dropout acts after [`train()`](crate::PeftModel::train).
#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate", model_type = "bert", input_embedding = "word_embeddings")]
pub struct BertModel {
    embeddings: Embeddings,
    encoder: Encoder,
}

#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate")]
struct Embeddings {
    word_embeddings: Adapted<PaddedEmbedding>,
    position_embeddings: Adapted<Embedding>,
    token_type_embeddings: Adapted<Embedding>,
    #[peft(rename = "LayerNorm")]
    layer_norm: Adapted<LayerNorm>,
    dropout: Dropout,
}

#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate")]
struct Encoder {
    layer: Vec<BertLayer>,
}

#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate")]
struct BertLayer {
    attention: Attention,
    intermediate: Intermediate,
    output: Output,
}

#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate")]
struct Attention {
    #[peft(rename = "self")]
    self_attention: SelfAttention,
    output: Output,
}

#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate")]
struct SelfAttention {
    query: Adapted<Linear>,
    key: Adapted<Linear>,
    value: Adapted<Linear>,
    dropout: Dropout,
    heads: usize,
}

#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate")]
struct Intermediate {
    dense: Adapted<Linear>,
    #[peft(skip)]
    activation: HiddenAct,
}

/// A projection, dropout, the residual connection and a norm.
#[derive(Clone, Debug, crate::Injectable)]
#[peft(crate = "crate")]
struct Output {
    dense: Adapted<Linear>,
    #[peft(rename = "LayerNorm")]
    layer_norm: Adapted<LayerNorm>,
    dropout: Dropout,
}

impl BertModel {
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
        let config: BertConfig = folder::read_config(folder)?;
        let vb = folder::weights(folder, "bert", dtype, device)?;
        Self::new(&config, vb).map_err(|error| crate::error::Error::from(error).in_file(folder))
    }

    /// Builds the model from the tensors of a builder.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, the heads do not share out the vectors evenly, or a probability of dropout
    /// is not at least 0 and below 1.
    pub fn new(config: &BertConfig, vb: VarBuilder<'_>) -> Result<Self> {
        let (size, heads) = (config.hidden_size, config.num_attention_heads);
        if heads == 0 || !size.is_multiple_of(heads) {
            bail!("`hidden_size` {size} is not a multiple of `num_attention_heads` {heads}")
        }
        let layers = vb.pp("encoder").pp("layer");
        let layer = (0..config.num_hidden_layers)
            .map(|i| BertLayer::new(config, &layers.pp(i)))
            .collect::<Result<_>>()?;
        Ok(Self { embeddings: Embeddings::new(config, &vb.pp("embeddings"))?, encoder: Encoder { layer } })
    }

    /// The size of a token's vector.
    pub fn hidden_size(&self) -> usize {
        self.embeddings.layer_norm.base().weight().elem_count()
    }

    /// The last hidden state, `[batch, length, hidden]`.
    ///
    /// `input_ids` and `token_type_ids` have the shape `[batch, length]`; the attention mask too, with 1 for tokens and 0
    /// for padding.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        input_ids: &Tensor,
        token_type_ids: Option<&Tensor>,
        attention_mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.encode(input_ids, token_type_ids, &Batch { mask: attention_mask, packing: None })
    }

    /// The last hidden state, `[batch, length, hidden]`, with zeros where `attention_mask` is 0.
    ///
    /// The tokens' vectors are those of [`forward`](Self::forward); padding is only computed by attention, so that a batch costs
    /// little more than its tokens. Rows cannot be routed to adapters of their own here: a batch is no longer one row a sequence.
    ///
    /// # Errors
    /// If the shapes do not fit, or the mask has no token.
    pub fn forward_unpadded(
        &self,
        input_ids: &Tensor,
        token_type_ids: Option<&Tensor>,
        attention_mask: &Tensor,
    ) -> Result<Tensor> {
        let packing = Packing::new(attention_mask)?;
        let batch = Batch { mask: Some(attention_mask), packing: Some(&packing) };
        packing.unpack(&self.encode(input_ids, token_type_ids, &batch)?)
    }

    fn encode(
        &self,
        input_ids: &Tensor,
        token_type_ids: Option<&Tensor>,
        batch: &Batch<'_>,
    ) -> Result<Tensor> {
        let mut hidden = self.embeddings.forward(input_ids, token_type_ids, batch)?;
        for layer in &self.encoder.layer {
            hidden = layer.forward(&hidden, batch)?;
        }
        Ok(hidden)
    }
}

impl Embeddings {
    fn new(config: &BertConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let size = config.hidden_size;
        Ok(Self {
            word_embeddings: nn::padded_embedding(
                config.vocab_size,
                size,
                config.pad_token_id,
                vb.pp("word_embeddings"),
            )?,
            position_embeddings: nn::embedding(
                config.max_position_embeddings,
                size,
                vb.pp("position_embeddings"),
            )?,
            token_type_embeddings: nn::embedding(
                config.type_vocab_size,
                size,
                vb.pp("token_type_embeddings"),
            )?,
            layer_norm: nn::layer_norm(size, config.layer_norm_eps, vb.pp("LayerNorm"))?,
            dropout: config.hidden_dropout()?,
        })
    }

    fn forward(
        &self,
        input_ids: &Tensor,
        token_type_ids: Option<&Tensor>,
        batch: &Batch<'_>,
    ) -> Result<Tensor> {
        let (_, length) = input_ids.dims2()?;
        let positions = Tensor::arange(0u32, length as u32, input_ids.device())?;
        let types = match token_type_ids {
            Some(types) => types.clone(),
            None => input_ids.zeros_like()?,
        };
        let words = self.word_embeddings.forward(input_ids)?;
        let sum = (words + self.token_type_embeddings.forward(&types)?)?;
        let sum = sum.broadcast_add(&self.position_embeddings.forward(&positions)?)?;
        self.dropout.forward(&self.layer_norm.forward(&batch.pack(sum)?)?)
    }
}

impl BertLayer {
    fn new(config: &BertConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let (attention, intermediate) = (vb.pp("attention"), vb.pp("intermediate"));
        Ok(Self {
            attention: Attention {
                self_attention: SelfAttention::new(config, &attention.pp("self"))?,
                output: Output::new(hidden, config, &attention.pp("output"))?,
            },
            intermediate: Intermediate {
                dense: nn::linear(hidden, wide, intermediate.pp("dense"))?,
                activation: config.hidden_act,
            },
            output: Output::new(wide, config, &vb.pp("output"))?,
        })
    }

    fn forward(&self, hidden: &Tensor, batch: &Batch<'_>) -> Result<Tensor> {
        let attended = self.attention.self_attention.forward(hidden, batch)?;
        let hidden = self.attention.output.forward(&attended, hidden)?;
        self.output.forward(&self.intermediate.forward(&hidden)?, &hidden)
    }
}

impl SelfAttention {
    fn new(config: &BertConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let projection = |name: &str| nn::linear(config.hidden_size, config.hidden_size, vb.pp(name));
        Ok(Self {
            query: projection("query")?,
            key: projection("key")?,
            value: projection("value")?,
            dropout: config.attention_dropout()?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, hidden: &Tensor, batch: &Batch<'_>) -> Result<Tensor> {
        let split = |projected: Tensor| {
            let projected = batch.unpack(projected)?;
            let (rows, length, size) = projected.dims3()?;
            reshaped(&projected, (rows, length, self.heads, size / self.heads))
        };
        let (query, key) = (split(self.query.forward(hidden)?)?, split(self.key.forward(hidden)?)?);
        let value = split(self.value.forward(hidden)?)?;
        let (scale, dropout) = ((query.dim(3)? as f64).sqrt().recip(), self.dropout.draw()?);
        let options = AttentionOptions { scale, causal: false, mask: batch.mask, dropout };
        let attended = nn::attention(&query, &key, &value, &options)?;
        let (rows, length, heads, size) = attended.dims4()?;
        batch.pack(reshaped(&attended, (rows, length, heads * size))?)
    }
}

impl Intermediate {
    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        self.activation.forward(&self.dense.forward(hidden)?)
    }
}

impl Output {
    fn new(in_dim: usize, config: &BertConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            dense: nn::linear(in_dim, config.hidden_size, vb.pp("dense"))?,
            layer_norm: nn::layer_norm(config.hidden_size, config.layer_norm_eps, vb.pp("LayerNorm"))?,
            dropout: config.hidden_dropout()?,
        })
    }

    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let projected = self.dropout.forward(&self.dense.forward(x)?)?;
        self.layer_norm.forward(&(projected + residual)?)
    }
}
