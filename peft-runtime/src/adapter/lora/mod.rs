//! LoRA: y += s·B(A(dropout(x))). <https://arxiv.org/abs/2106.09685>

mod combine;
mod describe;
mod dora;
mod init;
mod loftq;
mod method;

use std::sync::Arc;

use candle_core::{Tensor, Var};

use super::{Adapter, AdapterTensor, Call, Component, Geometry, LinearParameters, LowRank, MergeError, Site};
use crate::ops::{add_promoted, promoted};
use crate::schema::Family;

pub(crate) use describe::tuple;
use dora::Magnitude;
pub(crate) use method::size_at;

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
    /// It lost the product of these factors.
    TookOut(LowRank),
    /// It was quantised; these factors make up for the loss.
    Quantised(LowRank),
}

/// The tensors of an adapter as those of plain LoRA, each with the end of its key.
pub(crate) struct PlainFactors {
    pub(crate) a: (&'static str, Tensor),
    pub(crate) b: (&'static str, Tensor),
    pub(crate) bias: Option<(&'static str, Tensor)>,
    pub(crate) scaling: f64,
}

/// The names of the factors: embeddings have names of their own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    pub(super) a: &'static str,
    pub(super) b: &'static str,
}

pub(super) const LAYER_KEYS: Keys = Keys { a: "lora_A.weight", b: "lora_B.weight" };
pub(super) const EMBEDDING_KEYS: Keys = Keys { a: "lora_embedding_A", b: "lora_embedding_B" };
const BIAS_KEY: &str = "lora_B.bias";

impl Lora {
    fn terms(&self, call: &Call<'_>) -> LowRank {
        LowRank { a: call.tensor(&self.a), b: call.tensor(&self.b), scaling: self.scaling }
    }

    fn constant_terms(&self) -> LowRank {
        LowRank { a: self.a.as_detached_tensor(), b: self.b.as_detached_tensor(), scaling: self.scaling }
    }

    /// The factors with those of the start beside them, negated: `[A; A₀]` and `[B, −B₀]`; zeros where the base weight
    /// was left alone.
    pub(crate) fn relative_to_original(&self) -> candle_core::Result<[(&'static str, Tensor); 2]> {
        let LowRank { a, b, .. } = self.constant_terms();
        let (first_a, first_b) = match self.start() {
            Some(start) => (start.a.to_dtype(a.dtype())?, start.b.to_dtype(b.dtype())?.neg()?),
            None => (a.zeros_like()?, b.zeros_like()?),
        };
        Ok([(self.keys.a, Tensor::cat(&[a, first_a], 0)?), (self.keys.b, Tensor::cat(&[b, first_b], 1)?)])
    }

    /// The factors for the base weight as it was before the adapter changed it, and what else the adapter adds.
    pub(crate) fn plain_factors(&self) -> candle_core::Result<PlainFactors> {
        let (a, b) = match self.start() {
            Some(_) => {
                let [(_, a), (_, b)] = self.relative_to_original()?;
                (a, b)
            }
            None => (self.a.as_detached_tensor(), self.b.as_detached_tensor()),
        };
        let bias = self.b_bias.as_ref().map(|bias| (BIAS_KEY, bias.as_detached_tensor()));
        Ok(PlainFactors { a: (self.keys.a, a), b: (self.keys.b, b), bias, scaling: self.scaling })
    }

    /// The factors as matrices `[rank, in · kernel]` and `[out, rank]`; `None` in groups, where the update is no matrix.
    pub(crate) fn matrices(&self) -> candle_core::Result<Option<LowRank>> {
        if let Geometry::Conv { settings, .. } = &self.geometry
            && settings.groups > 1
        {
            return Ok(None);
        }
        let LowRank { a, b, scaling } = self.constant_terms();
        let (a, b) = (a.reshape((self.rank, ()))?, b.reshape((self.geometry.out_features(), self.rank))?);
        Ok(Some(LowRank { a, b, scaling }))
    }

    /// Whether the adapter has lengths of its own for the outputs, as DoRA's have.
    pub(crate) fn has_lengths(&self) -> bool {
        self.magnitude.is_some()
    }

    fn is_embedding(&self) -> bool {
        self.geometry.family() == Family::Embedding
    }

    fn acts_with_dropout(&self, call: &Call<'_>) -> bool {
        // An embedding's input are indices: nothing to drop, as in PEFT.
        call.training && self.dropout > 0.0 && !self.is_embedding()
    }

    /// The rank.
    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    /// The factors that the adapter started with, if the base weight was changed to suit them.
    pub(crate) fn start(&self) -> Option<&LowRank> {
        match &self.start {
            Start::Untouched => None,
            Start::TookOut(factors) | Start::Quantised(factors) => Some(factors),
        }
    }
}

impl Adapter for Lora {
    fn tensors(&self) -> Vec<AdapterTensor<'_>> {
        let mut tensors =
            vec![AdapterTensor::new(self.keys.a, &self.a), AdapterTensor::new(self.keys.b, &self.b)];
        tensors.extend(self.b_bias.as_ref().map(|bias| AdapterTensor::new(BIAS_KEY, bias)));
        tensors.extend(self.magnitude.as_ref().map(Magnitude::tensor));
        tensors
    }

    fn adapt_output(&self, call: &Call<'_>, input: &Tensor, output: Tensor) -> candle_core::Result<Tensor> {
        let terms = self.terms(call);
        let dropped = match self.acts_with_dropout(call) {
            true => Some(call.dropout(&input.to_dtype(terms.a.dtype())?, self.dropout)?),
            false => None,
        };
        let residual = self.geometry.low_rank(dropped.as_ref().unwrap_or(input), &terms)?;
        if let Some(magnitude) = &self.magnitude {
            return magnitude.adapt_output(self, call, dropped.as_ref(), &residual, &output);
        }
        let output = add_promoted(&output, &residual)?;
        match &self.b_bias {
            None => Ok(output),
            Some(bias) => {
                let bias = self.geometry.over_output(&(call.tensor(bias) * self.scaling)?)?;
                output.broadcast_add(&bias.to_dtype(output.dtype())?)
            }
        }
    }

    fn low_rank(&self, call: &Call<'_>) -> candle_core::Result<Option<LowRank>> {
        let plain = !self.acts_with_dropout(call) && self.b_bias.is_none() && self.magnitude.is_none();
        Ok(plain.then(|| self.terms(call)))
    }

    fn weight_delta(&self, call: &Call<'_>) -> candle_core::Result<Option<Tensor>> {
        self.geometry.tracked_delta(&self.terms(call)).map(Some)
    }

    fn merge(&self, site: &Site<'_>, parameters: LinearParameters) -> Result<LinearParameters, MergeError> {
        if let Geometry::Conv { settings, .. } = &self.geometry
            && settings.groups > 1
        {
            let reason = format!("no convolution with {} groups computes the same", settings.groups);
            return Err(MergeError::Impossible(reason));
        }
        if let Some(magnitude) = &self.magnitude {
            return Ok(magnitude.merge(self, site, parameters)?);
        }
        let weight = sum_in(&parameters.weight, &self.geometry.low_rank_delta(&self.constant_terms())?)?;
        let bias = match (&self.b_bias, parameters.bias) {
            (None, bias) => bias,
            (Some(delta), Some(bias)) => Some(sum_in(&bias, &(delta.as_detached_tensor() * self.scaling)?)?),
            (Some(_), None) => {
                let reason = "the layer has no bias that could take up that of `lora_B`".to_owned();
                return Err(MergeError::Impossible(reason));
            }
        };
        Ok(LinearParameters { weight, bias })
    }

    fn restored_weight(&self, weight: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let Start::TookOut(factors) = &self.start else { return Ok(None) };
        Ok(Some(sum_in(weight, &self.geometry.low_rank_delta(factors)?)?))
    }

    fn scaling(&self) -> Option<f64> {
        Some(self.scaling)
    }

    fn with_scaling(&self, scaling: f64) -> Option<Arc<dyn Adapter>> {
        Some(Arc::new(Self { scaling, ..self.clone() }))
    }

    fn changed_base(&self) -> bool {
        self.start().is_some()
    }

    fn mixes_in_a_batch(&self) -> bool {
        self.magnitude.is_none()
    }

    fn components(&self) -> Vec<Component> {
        describe::components(self)
    }

    fn tree_prefix(&self) -> Option<&'static str> {
        Some("lora")
    }

    fn as_lora(&self) -> Option<&Lora> {
        Some(self)
    }
}

/// The sum in the promoted dtype, rounded to that of `value`.
fn sum_in(value: &Tensor, delta: &Tensor) -> candle_core::Result<Tensor> {
    let dtype = promoted(value.dtype(), delta.dtype());
    (value.to_dtype(dtype)? + delta.to_dtype(dtype)?)?.to_dtype(value.dtype())
}
