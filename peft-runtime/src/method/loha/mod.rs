//! LoHa: y += s·((A₁·B₁) ∘ (A₂·B₂))·x. <https://arxiv.org/abs/2108.06098>

mod config;
mod method;

use std::sync::Arc;

use candle_core::{Result as CandleResult, Tensor, Var};

use super::weight_delta::{DeltaDropout, add_to_weight, apply, core_product};
use crate::adapter::{
    Adapter, AdapterTensor, Call, Component, Geometry, LinearParameters, LowRank, MergeError, Site,
};
use crate::ops::widened_value;

pub use config::{LohaConfig, LohaSettings, LohaStart};

/// The keys of A₁, B₁, A₂, B₂.
const FACTORS: [&str; 4] = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"];
/// The keys of the cores.
const CORES: [&str; 2] = ["hada_t1", "hada_t2"];
/// All keys.
const KEYS: [&str; 6] = [FACTORS[0], FACTORS[1], FACTORS[2], FACTORS[3], CORES[0], CORES[1]];

/// The LoHa state of one layer: A₁, A₂ `[out, rank]` and B₁, B₂ `[rank, in · kernel]`; with cores `[rank, rank, …kernel]` on
/// a convolution, the factors are `[rank, out]` and `[rank, in]`.
#[derive(Clone, Debug)]
pub struct Loha {
    factors: [Var; 4],
    cores: Option<[Var; 2]>,
    scaling: f64,
    dropout: DeltaDropout,
    geometry: Geometry,
}

impl Loha {
    /// The rank of the factors.
    fn factor_rank(&self) -> usize {
        // The rank is the first dimension of B₁ in both forms.
        self.factors[1].dims().first().copied().unwrap_or_default()
    }

    fn each_factor(&self, tensor: impl Fn(&Var) -> CandleResult<Tensor>) -> CandleResult<[Tensor; 4]> {
        let [a1, b1, a2, b2] = &self.factors;
        Ok([tensor(a1)?, tensor(b1)?, tensor(a2)?, tensor(b2)?])
    }

    /// ΔW as LoRA factors with the squared rank: each row of A is a product of rows, and each column of B is a product
    /// of columns.
    fn squared(&self, tensor: impl Fn(&Var) -> CandleResult<Tensor>) -> CandleResult<LowRank> {
        let rank = self.factor_rank();
        let [a1, b1, a2, b2] = self.each_factor(tensor)?;
        let (outputs, inputs) = (a1.dim(0)?, b1.dim(1)?);
        let b = a1.unsqueeze(2)?.broadcast_mul(&a2.unsqueeze(1)?)?.reshape((outputs, rank * rank))?;
        let a = b1.unsqueeze(1)?.broadcast_mul(&b2.unsqueeze(0)?)?.reshape((rank * rank, inputs))?;
        Ok(LowRank { a, b, scaling: self.scaling })
    }

    /// Whether LoRA's factors take less work than ΔW itself.
    fn squares(&self) -> bool {
        let Geometry::Linear { in_features, out_features, .. } = self.geometry else { return false };
        let rank = self.factor_rank() * self.factor_rank();
        rank * (in_features + out_features) <= in_features * out_features
    }

    /// ΔW in the shape of the weight.
    fn delta(&self, tensor: impl Fn(&Var) -> CandleResult<Tensor>) -> CandleResult<Tensor> {
        let [a1, b1, a2, b2] = self.each_factor(&tensor)?;
        let (first, second) = match &self.cores {
            Some([t1, t2]) => (core_product(&tensor(t1)?, &a1, &b1)?, core_product(&tensor(t2)?, &a2, &b2)?),
            None => (a1.matmul(&b1)?, a2.matmul(&b2)?),
        };
        ((first * second)? * self.scaling)?.reshape(self.geometry.weight_shape())
    }
}

impl Adapter for Loha {
    fn tensors(&self) -> Vec<AdapterTensor<'_>> {
        let factors = FACTORS.into_iter().zip(&self.factors);
        let cores = CORES.into_iter().zip(self.cores.iter().flatten());
        factors.chain(cores).map(|(key, var)| AdapterTensor::new(key, var)).collect()
    }

    fn adapt_output(&self, call: &Call<'_>, input: &Tensor, output: Tensor) -> CandleResult<Tensor> {
        let part = if self.squares() {
            self.geometry.low_rank(input, &self.squared(|var| call.wide_tensor(var))?)?
        } else {
            apply(&self.geometry, &self.delta(|var| call.wide_tensor(var))?, input)?
        };
        self.dropout.add(call, &self.geometry, &output, &part)
    }

    fn low_rank(&self, call: &Call<'_>) -> CandleResult<Option<LowRank>> {
        if self.dropout.acts(call) || !self.squares() {
            return Ok(None);
        }
        self.squared(|var| call.wide_tensor(var)).map(Some)
    }

    fn merge(&self, _: &Site<'_>, parameters: LinearParameters) -> Result<LinearParameters, MergeError> {
        let delta = self.delta(widened_value)?;
        let LinearParameters { weight, bias } = parameters;
        Ok(LinearParameters { weight: add_to_weight(&weight, &delta)?, bias })
    }

    fn scaling(&self) -> Option<f64> {
        Some(self.scaling)
    }

    fn with_scaling(&self, scaling: f64) -> Option<Arc<dyn Adapter>> {
        Some(Arc::new(Self { scaling, ..self.clone() }))
    }

    fn label(&self) -> &'static str {
        "LoHa"
    }

    fn rank(&self) -> Option<usize> {
        Some(self.factor_rank())
    }

    fn low_rank_update(&self) -> CandleResult<Option<LowRank>> {
        if self.cores.is_some() {
            return Ok(None);
        }
        self.squared(widened_value).map(Some)
    }

    fn dense_update(&self) -> CandleResult<Option<Tensor>> {
        self.delta(widened_value)?.flatten_from(1).map(Some)
    }

    fn components(&self) -> Vec<Component> {
        let factors = FACTORS.into_iter().zip(self.factors.iter().map(Some));
        let cores = self.cores.as_ref().map_or([None, None], |cores| cores.each_ref().map(Some));
        let all = factors.chain(CORES.into_iter().zip(cores));
        all.map(|(name, var)| Component::tensors(name, var.map(Var::as_tensor))).collect()
    }

    fn tree_prefix(&self) -> Option<&'static str> {
        Some("loha")
    }
}
