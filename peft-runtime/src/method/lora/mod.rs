//! LoRA: y += s·B(A(dropout(x))). <https://arxiv.org/abs/2106.09685>

mod adapter;
mod combination;
mod combined_factors;
mod config;
mod default_targets;
mod derived;
mod dora;
pub(crate) mod eva;
mod eva_config;
mod faults;
mod init;
mod layer;
mod loftq;
mod method;
mod start;
mod tied;
pub(crate) mod training;
mod tree;
mod tying;
mod unimplemented;

use candle_core::{Tensor, Var};

use crate::adapter::{Call, Geometry, LowRank};
use crate::ops::{promoted, widened_value};
use crate::schema::Family;

pub use config::{LoraConfig, LoraSettings};
use dora::Magnitude;
pub use eva_config::EvaConfig;
pub use init::{LoftqConfig, LoraInit};
pub(crate) use unimplemented::{is_idle_lora_field, unimplemented_lora_fields};

/// The LoRA state of one layer: A `[rank, in]` and B `[out, rank]`, for a convolution with the kernel's dimensions.
#[derive(Clone, Debug)]
pub struct Lora {
    keys: Keys,
    rank: usize,
    a: Var,
    b: Var,
    b_bias: Option<Var>,
    magnitude: Option<Magnitude>,
    /// What making the adapter did to the base weight.
    start: Start,
    scaling: f64,
    dropout: f64,
    geometry: Geometry,
}

/// What making an adapter did to the base weight.
#[derive(Clone, Debug)]
enum Start {
    /// Nothing.
    Untouched,
    /// The product of these factors was subtracted from it.
    TookOut(LowRank),
    /// It was quantised; these factors compensate for the loss.
    Quantised(LowRank),
}

/// The names of the factors: embeddings have names of their own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    pub(crate) a: &'static str,
    pub(crate) b: &'static str,
}

pub(crate) const LAYER_KEYS: Keys = Keys { a: "lora_A.weight", b: "lora_B.weight" };
const EMBEDDING_KEYS: Keys = Keys { a: "lora_embedding_A", b: "lora_embedding_B" };
const BIAS_KEY: &str = "lora_B.bias";

impl Lora {
    /// The factor A, `[rank, in]`; on an embedding `[rank, vocabulary]`.
    pub fn a(&self) -> &Var {
        &self.a
    }

    /// The factor B, `[out, rank]`.
    pub fn b(&self) -> &Var {
        &self.b
    }

    fn terms(&self, call: &Call<'_>) -> candle_core::Result<LowRank> {
        let (a, b) = (call.wide_tensor(&self.a)?, call.wide_tensor(&self.b)?);
        Ok(LowRank { a, b, scaling: self.scaling })
    }

    fn constant_terms(&self) -> candle_core::Result<LowRank> {
        let (a, b) = (widened_value(&self.a)?, widened_value(&self.b)?);
        Ok(LowRank { a, b, scaling: self.scaling })
    }

    /// The factors concatenated with the initial ones, negated: `[A; A₀]` and `[B, −B₀]`; the initial ones are zeros if
    /// the base weight was not changed.
    fn relative_to_original(&self) -> candle_core::Result<[(&'static str, Tensor); 2]> {
        let (a, b) = (self.a.as_detached_tensor(), self.b.as_detached_tensor());
        let (first_a, first_b) = match self.start() {
            Some(start) => (start.a.to_dtype(a.dtype())?, start.b.to_dtype(b.dtype())?.neg()?),
            None => (a.zeros_like()?, b.zeros_like()?),
        };
        Ok([(self.keys.a, Tensor::cat(&[a, first_a], 0)?), (self.keys.b, Tensor::cat(&[b, first_b], 1)?)])
    }

    fn is_embedding(&self) -> bool {
        self.geometry.family() == Family::Embedding
    }

    fn acts_with_dropout(&self, call: &Call<'_>) -> bool {
        // An embedding's inputs are indices: nothing to drop, as in PEFT.
        call.training && self.dropout > 0.0 && !self.is_embedding()
    }

    /// The factors that the adapter started with, if the base weight was changed to suit them.
    fn start(&self) -> Option<&LowRank> {
        match &self.start {
            Start::Untouched => None,
            Start::TookOut(factors) | Start::Quantised(factors) => Some(factors),
        }
    }
}

/// The sum in the promoted dtype, rounded to that of `value`.
fn sum_in(value: &Tensor, delta: &Tensor) -> candle_core::Result<Tensor> {
    let dtype = promoted(value.dtype(), delta.dtype());
    (value.to_dtype(dtype)? + delta.to_dtype(dtype)?)?.to_dtype(value.dtype())
}
