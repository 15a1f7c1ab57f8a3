//! An encoder, the mean over its tokens, and a linear head.

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::{Linear, Module};
use peft_runtime::models::bert::BertModel;
use peft_runtime::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// A sentence encoder with a two-way classifier.
#[derive(Injectable)]
pub struct SentimentModel {
    bert: BertModel,
    classifier: Adapted<Linear>,
}

impl SentimentModel {
    /// Reads the encoder and draws a small random head.
    pub fn from_folder(folder: &Path, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        let bert = BertModel::from_folder(folder, dtype, device)?;
        let size = bert.hidden_size();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut uniform = || (f64::from(rng.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0) as f32;
        let bound = 1.0 / (size as f32).sqrt();
        let weight: Vec<f32> = (0..2 * size).map(|_| uniform() * bound).collect();
        let weight = Tensor::from_vec(weight, (2, size), device)?.to_dtype(dtype)?;
        let bias = Tensor::zeros(2, dtype, device)?;
        Ok(Self { bert, classifier: Linear::new(weight, Some(bias)).into() })
    }

    /// The scores of the two classes, `[batch, 2]`, in f32.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
        let hidden = self.bert.forward_unpadded(ids, None, mask)?;
        let weights = mask.broadcast_div(&mask.sum_keepdim(1)?)?.unsqueeze(1)?;
        let mean = weights.matmul(&hidden.to_dtype(weights.dtype())?)?.squeeze(1)?;
        self.classifier.forward(&mean.to_dtype(hidden.dtype())?)?.to_dtype(DType::F32)
    }
}
