//! Models with the sizes of known ones, random weights and random tokens.

use anyhow::Result;
use candle_core::{DType, Device, Shape, Tensor, bail};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use clap::ValueEnum;
use peft_runtime::models::llama::LlamaConfig;
use serde_json::json;

/// The sizes of a known model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModelShape {
    /// Two small blocks, to try things out.
    Tiny,
    /// SmolLM2-135M: 30 blocks, 576 wide.
    #[value(name = "smollm2-135m")]
    Smol135M,
    /// SmolLM2-360M: 32 blocks, 960 wide.
    #[value(name = "smollm2-360m")]
    Smol360M,
    /// Qwen2.5-0.5B: 24 blocks, 896 wide.
    #[value(name = "qwen2.5-0.5b")]
    Qwen500M,
    /// Llama-3.2-1B: 16 blocks, 2048 wide.
    #[value(name = "llama3.2-1b")]
    Llama1B,
}

impl ModelShape {
    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The model's settings.
    ///
    /// # Errors
    /// If the sizes do not fit together.
    pub fn config(self) -> Result<LlamaConfig> {
        match self {
            Self::Tiny => config_of("llama", [256, 64, 160, 2, 4, 2]),
            Self::Smol135M => config_of("llama", [49_152, 576, 1536, 30, 9, 3]),
            Self::Smol360M => config_of("llama", [49_152, 960, 2560, 32, 15, 5]),
            Self::Qwen500M => config_of("qwen2", [151_936, 896, 4864, 24, 14, 2]),
            Self::Llama1B => config_of("llama", [128_256, 2048, 8192, 16, 32, 8]),
        }
    }
}

/// The settings of a model with these sizes: vocabulary, hidden, feed-forward, blocks, heads, key and value heads.
///
/// # Errors
/// If the sizes do not fit together.
pub fn config_of(model_type: &str, sizes: [usize; 6]) -> Result<LlamaConfig> {
    let [vocabulary, hidden, wide, blocks, heads, key_value_heads] = sizes;
    let config = json!({
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": true,
    });
    Ok(serde_json::from_value(config)?)
}

/// Weights that are drawn when they are asked for: the same name and seed give the same values.
///
/// The weights of norms are ones and biases are zeros; everything else is uniform with a standard deviation of 0.02.
pub struct RandomWeights {
    seed: u64,
}

impl RandomWeights {
    /// A `VarBuilder` over such weights; half precision has the values of f32, rounded.
    pub fn builder(seed: u64, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(Self { seed }), dtype, device.clone())
    }
}

impl SimpleBackend for RandomWeights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let count = shape.elem_count();
        let values: Vec<f32> = if name.ends_with("norm.weight") {
            vec![1.0; count]
        } else if name.ends_with("bias") {
            vec![0.0; count]
        } else {
            let name = name.bytes().fold(self.seed, |hash, byte| mixed(hash ^ u64::from(byte)));
            // A uniform distribution of this width has that standard deviation.
            let width = 0.02 * 12f32.sqrt();
            uniform(name).take(count).map(|value| (value - 0.5) * width).collect()
        };
        Tensor::from_vec(values, shape, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        bail!("the shape of `{name}` has to be known")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// Token ids `[batch, length]`, uniform over the vocabulary.
///
/// # Errors
/// If the device reports an error.
pub fn random_tokens(
    vocabulary: usize,
    (batch, length): (usize, usize),
    seed: u64,
    device: &Device,
) -> candle_core::Result<Tensor> {
    let tokens = uniform(mixed(seed)).take(batch * length).map(|value| (value * vocabulary as f32) as u32);
    Tensor::from_vec(tokens.collect::<Vec<u32>>(), (batch, length), device)
}

/// Numbers from 0 up to but not including 1: SplitMix64, which is faster than a cipher for a hundred million of them.
fn uniform(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mixed(state) >> 40) as f32 / (1u64 << 24) as f32
    })
}

/// SplitMix64's finaliser.
fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
