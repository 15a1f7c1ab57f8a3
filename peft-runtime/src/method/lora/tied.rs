//! LoRA on the output layer that has an embedding's weight: the embedding's own factors, transposed.

use std::sync::Arc;

use candle_core::{Result as CandleResult, Tensor, Var};

use super::{EMBEDDING_KEYS, LAYER_KEYS, Lora, sum_in, tree};
use crate::adapter::{
    Adapter, AdapterTensor, Call, Component, Geometry, LinearParameters, LowRank, MergeError, PlainFactors,
    Site,
};
use crate::ops::{add_promoted, widened_value};

/// The adapter of an output layer `[vocabulary, features]` whose weight is an embedding's.
#[derive(Clone, Debug)]
pub(super) struct TiedLora {
    /// The embedding's A, `[rank, vocabulary]`, which is the transpose of this B.
    embedding_a: Var,
    /// The embedding's B, `[features, rank]`, which is the transpose of this A.
    embedding_b: Var,
    rank: usize,
    scaling: f64,
    dropout: f64,
    geometry: Geometry,
}

impl TiedLora {
    /// The adapter of a layer of that geometry, if `lora` is that of an embedding and has nothing but the factors.
    pub(super) fn of(lora: &Lora, geometry: Geometry) -> Option<Self> {
        let is_plain = lora.keys.a == EMBEDDING_KEYS.a && lora.magnitude.is_none() && lora.start().is_none();
        let Geometry::Linear { transposed: false, .. } = geometry else { return None };
        is_plain.then(|| Self {
            embedding_a: lora.a.clone(),
            embedding_b: lora.b.clone(),
            rank: lora.rank,
            scaling: lora.scaling,
            dropout: lora.dropout,
            geometry,
        })
    }

    fn terms(&self, of: impl Fn(&Var) -> CandleResult<Tensor>) -> CandleResult<LowRank> {
        let transposed = |var: &Var| of(var)?.t()?.contiguous();
        let (a, b) = (transposed(&self.embedding_b)?, transposed(&self.embedding_a)?);
        Ok(LowRank { a, b, scaling: self.scaling })
    }

    fn constant_terms(&self) -> CandleResult<LowRank> {
        self.terms(widened_value)
    }

    fn drops(&self, call: &Call<'_>) -> bool {
        call.training && self.dropout > 0.0
    }
}

impl Adapter for TiedLora {
    fn tensors(&self) -> Vec<AdapterTensor<'_>> {
        let tied = |key, var| AdapterTensor { key, var, trainable: false, stored: true };
        vec![tied(LAYER_KEYS.a, &self.embedding_b), tied(LAYER_KEYS.b, &self.embedding_a)]
    }

    fn stored_tensor(&self, tensor: &AdapterTensor<'_>) -> CandleResult<Tensor> {
        tensor.var.as_detached_tensor().t()?.contiguous()
    }

    fn adapt_output(&self, call: &Call<'_>, input: &Tensor, output: Tensor) -> CandleResult<Tensor> {
        let terms = self.terms(|var| call.wide_tensor(var))?;
        let update = match self.drops(call) {
            true => {
                let dropped = call.dropout(&input.to_dtype(terms.a.dtype())?, self.dropout)?;
                self.geometry.low_rank(&dropped, &terms)?
            }
            false => self.geometry.low_rank(input, &terms)?,
        };
        add_promoted(&output, &update)
    }

    fn low_rank(&self, call: &Call<'_>) -> CandleResult<Option<LowRank>> {
        if self.drops(call) { Ok(None) } else { self.terms(|var| call.wide_tensor(var)).map(Some) }
    }

    fn merge(&self, _: &Site<'_>, parameters: LinearParameters) -> Result<LinearParameters, MergeError> {
        let LinearParameters { weight, bias } = parameters;
        let delta = self.geometry.low_rank_delta(&self.constant_terms()?)?;
        Ok(LinearParameters { weight: sum_in(&weight, &delta)?, bias })
    }

    fn scaling(&self) -> Option<f64> {
        Some(self.scaling)
    }

    fn with_scaling(&self, scaling: f64) -> Option<Arc<dyn Adapter>> {
        Some(Arc::new(Self { scaling, ..self.clone() }))
    }

    fn label(&self) -> &'static str {
        "LoRA"
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank)
    }

    fn low_rank_update(&self) -> CandleResult<Option<LowRank>> {
        self.constant_terms().map(Some)
    }

    fn plain_factors(&self) -> CandleResult<Option<PlainFactors>> {
        let LowRank { a, b, scaling } = self.constant_terms()?;
        let (a, b) = ((LAYER_KEYS.a, a), (LAYER_KEYS.b, b));
        Ok(Some(PlainFactors { a, b, bias: None, scaling, restores: false }))
    }

    fn components(&self) -> Vec<Component> {
        tree::linear_components(&self.geometry, self.rank, self.dropout)
    }

    fn tree_prefix(&self) -> Option<&'static str> {
        Some("lora")
    }
}
