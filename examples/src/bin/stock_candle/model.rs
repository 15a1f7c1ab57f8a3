//! Llama with LoRA as one writes it with candle-nn, using only ops that have a gradient.
//!
//! candle-nn's fast softmax, RMS norm and rotary embedding have none, so their slow forms are used.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::ops::softmax;
use candle_nn::rotary_emb::rope_slow;
use candle_nn::{Embedding, Linear, Module, RmsNorm, VarBuilder, loss};
use peft_runtime::models::llama::LlamaConfig;

/// A frozen linear layer with a low-rank product added to it.
struct Projection {
    base: Linear,
    a: Var,
    b: Var,
    scaling: f64,
}

struct Block {
    input_layernorm: RmsNorm,
    q_proj: Projection,
    k_proj: Projection,
    v_proj: Projection,
    o_proj: Projection,
    post_attention_layernorm: RmsNorm,
    gate_proj: Projection,
    up_proj: Projection,
    down_proj: Projection,
    heads: usize,
    key_value_heads: usize,
}

pub struct Llama {
    embed_tokens: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    lm_head: Linear,
    head_dim: usize,
    rope_theta: f64,
}

/// What all blocks share: the angles' cosines and sines, `[length, head size / 2]`, and a mask that is −∞ above the
/// diagonal.
struct Context {
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
}

impl Projection {
    fn new((inputs, outputs): (usize, usize), bias: bool, rank: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let bias = bias.then(|| vb.get(outputs, "bias")).transpose()?;
        let bound = 1.0 / (inputs as f64).sqrt();
        Ok(Self {
            base: Linear::new(vb.get((outputs, inputs), "weight")?, bias),
            a: Var::rand_f64(-bound, bound, (rank, inputs), DType::F32, &Device::Cpu)?,
            b: Var::zeros((outputs, rank), DType::F32, &Device::Cpu)?,
            // Alpha is twice the rank.
            scaling: 2.0,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let a = Linear::new(self.a.as_tensor().clone(), None);
        let b = Linear::new(self.b.as_tensor().clone(), None);
        let product = (b.forward(&a.forward(x)?)? * self.scaling)?;
        self.base.forward(x)? + product
    }
}

impl Block {
    fn new(config: &LlamaConfig, rank: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let (size, wide) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let (attention, mlp) = (vb.pp("self_attn"), vb.pp("mlp"));
        let attend = |name: &str, sizes: (usize, usize), bias: bool| {
            Projection::new(sizes, bias, rank, &attention.pp(name))
        };
        let feed =
            |name: &str, sizes: (usize, usize)| Projection::new(sizes, config.mlp_bias, rank, &mlp.pp(name));
        let norm = |name: &str| -> Result<RmsNorm> {
            Ok(RmsNorm::new(vb.pp(name).get(size, "weight")?, config.rms_norm_eps))
        };
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            q_proj: attend("q_proj", (size, queries), config.qkv_bias)?,
            k_proj: attend("k_proj", (size, keys), config.qkv_bias)?,
            v_proj: attend("v_proj", (size, keys), config.qkv_bias)?,
            o_proj: attend("o_proj", (queries, size), config.output_bias)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            gate_proj: feed("gate_proj", (size, wide))?,
            up_proj: feed("up_proj", (size, wide))?,
            down_proj: feed("down_proj", (wide, size))?,
            heads: config.num_attention_heads,
            key_value_heads: config.num_key_value_heads,
        })
    }

    fn projections(&self) -> [&Projection; 7] {
        let Self { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, .. } = self;
        [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
    }

    fn forward(&self, hidden: &Tensor, context: &Context) -> Result<Tensor> {
        let attended = self.attend(&self.input_layernorm.forward_diff(hidden)?, context)?;
        let hidden = (hidden + attended)?;
        let x = self.post_attention_layernorm.forward_diff(&hidden)?;
        let gated = (self.gate_proj.forward(&x)?.silu()? * self.up_proj.forward(&x)?)?;
        hidden + self.down_proj.forward(&gated)?
    }

    fn attend(&self, x: &Tensor, context: &Context) -> Result<Tensor> {
        let (batch, length, _) = x.dims3()?;
        let split = |projected: Tensor, heads: usize| {
            projected.reshape((batch, length, heads, ()))?.transpose(1, 2)?.contiguous()
        };
        let query = split(self.q_proj.forward(x)?, self.heads)?;
        let key = split(self.k_proj.forward(x)?, self.key_value_heads)?;
        let value = split(self.v_proj.forward(x)?, self.key_value_heads)?;
        let query = rope_slow(&query, &context.cos, &context.sin)?;
        let key = self.repeated(&rope_slow(&key, &context.cos, &context.sin)?)?;
        let value = self.repeated(&value)?;
        let scale = 1.0 / (query.dim(D::Minus1)? as f64).sqrt();
        let scores = (query.matmul(&key.t()?)? * scale)?.broadcast_add(&context.mask)?;
        let attended = softmax(&scores, D::Minus1)?.matmul(&value)?;
        self.o_proj.forward(&attended.transpose(1, 2)?.reshape((batch, length, ()))?)
    }

    /// Each head of keys or values, `[batch, heads, length, size]`, repeated once for each query head that shares it.
    fn repeated(&self, heads: &Tensor) -> Result<Tensor> {
        let times = self.heads / self.key_value_heads;
        if times == 1 {
            return Ok(heads.clone());
        }
        let (batch, count, length, size) = heads.dims4()?;
        Tensor::cat(&vec![heads; times], 2)?.reshape((batch, count * times, length, size))
    }
}

impl Llama {
    /// The model with LoRA of this rank on all seven projections, and tied embeddings.
    pub fn new(config: &LlamaConfig, rank: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let model = vb.pp("model");
        let table = model.pp("embed_tokens").get((config.vocab_size, config.hidden_size), "weight")?;
        let blocks = (0..config.num_hidden_layers)
            .map(|index| Block::new(config, rank, &model.pp("layers").pp(index)))
            .collect::<Result<_>>()?;
        let norm = model.pp("norm").get(config.hidden_size, "weight")?;
        Ok(Self {
            lm_head: Linear::new(table.clone(), None),
            embed_tokens: Embedding::new(table, config.hidden_size),
            blocks,
            norm: RmsNorm::new(norm, config.rms_norm_eps),
            head_dim: config.head_dim,
            rope_theta: config.rope_theta,
        })
    }

    /// The trainable variables.
    pub fn variables(&self) -> Vec<Var> {
        let projections = self.blocks.iter().flat_map(Block::projections);
        projections.flat_map(|projection| [projection.a.clone(), projection.b.clone()]).collect()
    }

    /// The mean cross-entropy of each next token, for tokens `[batch, length]`.
    pub fn loss(&self, tokens: &Tensor) -> Result<Tensor> {
        let (_, length) = tokens.dims2()?;
        let context = self.context(length)?;
        let mut hidden = self.embed_tokens.forward(tokens)?;
        for block in &self.blocks {
            hidden = block.forward(&hidden, &context)?;
        }
        let hidden = self.norm.forward_diff(&hidden)?.narrow(1, 0, length - 1)?.contiguous()?;
        let logits = self.lm_head.forward(&hidden.flatten_to(1)?)?;
        let targets = tokens.narrow(1, 1, length - 1)?.contiguous()?.flatten_all()?;
        loss::cross_entropy(&logits, &targets)
    }

    fn context(&self, length: usize) -> Result<Context> {
        let pairs = self.head_dim / 2;
        let frequency = |pair: usize| self.rope_theta.powf(-((2 * pair) as f64) / self.head_dim as f64);
        let angles: Vec<f32> = (0..length)
            .flat_map(|position| (0..pairs).map(move |pair| (position as f64 * frequency(pair)) as f32))
            .collect();
        let angles = Tensor::from_vec(angles, (length, pairs), &Device::Cpu)?;
        let mask: Vec<f32> = (0..length * length)
            .map(|place| if place % length > place / length { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let mask = Tensor::from_vec(mask, (length, length), &Device::Cpu)?;
        Ok(Context { cos: angles.cos()?, sin: angles.sin()?, mask })
    }
}
