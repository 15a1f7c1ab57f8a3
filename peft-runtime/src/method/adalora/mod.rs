//! AdaLoRA: y += σ/R · B·diag(E)·A·x, with ranks that can be cut. <https://arxiv.org/abs/2303.10512>

mod config;
mod default_targets;
mod faults;
mod method;
pub(crate) mod training;

use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{Device, Tensor, Var};

use super::lora::LAYER_KEYS;
use crate::adapter::{
    Adapter, AdapterTensor, Call, Component, ConvSettings, Geometry, LinearParameters, LowRank, MergeError,
    PlainFactors, Site, describe_dropout,
};
use crate::ops::conv::conv;
use crate::ops::{add_promoted, promoted, widened_value};

pub use config::{AdaLoraConfig, AdaLoraSettings};

/// The AdaLoRA state of one layer: A `[R, in]`, E `[R, 1]`, B `[out, R]`; a convolution's inputs are `in · height · width`.
#[derive(Clone, Debug)]
pub struct AdaLora {
    a: Var,
    b: Var,
    e: Var,
    /// The initial rank, which divides the scaling; 0 if no rank is left.
    rank_number: Var,
    scaling: f64,
    dropout: f64,
    geometry: Geometry,
    /// Which of the initial ranks are kept, once some have been cut.
    kept: Arc<RwLock<Option<Vec<bool>>>>,
}

const A: &str = "lora_A";
const B: &str = "lora_B";
const E: &str = "lora_E";
const RANK_NUMBER: &str = "ranknum";
/// What PEFT adds to the rank before dividing by it.
const RANK_EPSILON: f64 = 1e-5;

impl AdaLora {
    /// The factor A, `[R, in]`.
    pub fn a(&self) -> &Var {
        &self.a
    }

    /// The factor B, `[out, R]`.
    pub fn b(&self) -> &Var {
        &self.b
    }

    /// The singular values, `[R, 1]`.
    pub fn e(&self) -> &Var {
        &self.e
    }

    /// Which of the initial ranks are kept, once some have been cut.
    pub fn kept_ranks(&self) -> Option<Vec<bool>> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn keep_ranks(&self, kept: Vec<bool>) {
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) = Some(kept);
    }

    /// The number of ranks that are left.
    pub fn kept_rank(&self) -> usize {
        self.kept_positions().map_or_else(|| self.rows(), |kept| kept.len())
    }

    /// Sets to zero the singular values of ranks that were cut.
    pub(crate) fn clear_cut_ranks(&self) -> candle_core::Result<()> {
        let Some(kept) = self.kept_ranks().filter(|kept| kept.len() == self.rows() && !kept.is_empty())
        else {
            return Ok(());
        };
        let keeps: Vec<u8> = kept.into_iter().map(u8::from).collect();
        let keeps = Tensor::from_vec(keeps, self.e.dims(), &Device::Cpu)?.to_device(self.e.device())?;
        self.e.set(&keeps.where_cond(&self.e.as_detached_tensor(), &self.e.zeros_like()?)?)
    }

    fn rows(&self) -> usize {
        self.e.dims().first().copied().unwrap_or_default()
    }

    /// The positions of the kept ranks, if the tensors still hold all ranks.
    fn kept_positions(&self) -> Option<Vec<u32>> {
        let kept = self.kept_ranks().filter(|kept| kept.len() == self.rows())?;
        Some((0..).zip(kept).filter_map(|(position, keep)| keep.then_some(position)).collect())
    }

    /// σ / (R + ε).
    fn factor(&self) -> candle_core::Result<f64> {
        let ranks: f64 = f64::from(self.rank_number.flatten_all()?.to_vec1::<f32>()?[0]);
        Ok(self.scaling / (ranks + RANK_EPSILON))
    }

    fn terms(&self, tensor: impl Fn(&Var) -> candle_core::Result<Tensor>) -> candle_core::Result<LowRank> {
        let a = tensor(&self.a)?.broadcast_mul(&tensor(&self.e)?)?;
        Ok(LowRank { a, b: tensor(&self.b)?, scaling: self.factor()? })
    }

    fn residual(&self, x: &Tensor, terms: &LowRank) -> candle_core::Result<Tensor> {
        let Geometry::Conv { in_channels, kernel, settings, .. } = &self.geometry else {
            return self.geometry.low_rank(x, terms);
        };
        let rank = self.rows();
        let down = [&[rank, *in_channels], kernel.as_slice()].concat();
        let mut up = terms.b.dims().to_vec();
        up.resize(2 + kernel.len(), 1);
        let one_by_one = ConvSettings { padding: 0, stride: 1, dilation: 1, groups: 1 };
        let hidden = conv(&x.to_dtype(terms.a.dtype())?, &terms.a.reshape(down)?, *settings)?;
        conv(&hidden, &terms.b.reshape(up)?, one_by_one)? * terms.scaling
    }
}

impl Adapter for AdaLora {
    fn tensors(&self) -> Vec<AdapterTensor<'_>> {
        let rank_number =
            AdapterTensor { key: RANK_NUMBER, var: &self.rank_number, trainable: false, stored: false };
        vec![
            AdapterTensor::new(A, &self.a),
            AdapterTensor::new(B, &self.b),
            AdapterTensor::new(E, &self.e),
            rank_number,
        ]
    }

    fn stored_tensor(&self, tensor: &AdapterTensor<'_>) -> candle_core::Result<Tensor> {
        let Some(kept) = self.kept_positions() else { return Ok(tensor.var.as_detached_tensor()) };
        let axis = usize::from(tensor.key == B);
        if kept.is_empty() {
            let mut shape = tensor.var.dims().to_vec();
            shape[axis] = 0;
            return Tensor::zeros(shape, tensor.var.dtype(), tensor.var.device());
        }
        let kept = Tensor::new(kept, &Device::Cpu)?.to_device(tensor.var.device())?;
        tensor.var.as_detached_tensor().index_select(&kept, axis)
    }

    /// Stored tensors lack the ranks that were cut: these become zeros.
    fn unstored_tensor(
        &self,
        tensor: &AdapterTensor<'_>,
        stored: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let Some(kept) = self.kept_positions() else { return Ok(None) };
        let axis = usize::from(tensor.key == B);
        let mut expected = tensor.var.dims().to_vec();
        expected[axis] = kept.len();
        if stored.dims() != expected {
            return Ok(None);
        }
        let zeros = tensor.var.zeros_like()?;
        if kept.is_empty() {
            return Ok(Some(zeros));
        }
        let kept = Tensor::new(kept, &Device::Cpu)?.to_device(zeros.device())?;
        let stored = stored.to_dtype(zeros.dtype())?.to_device(zeros.device())?;
        zeros.index_add(&kept, &stored.contiguous()?, axis).map(Some)
    }

    fn adapt_output(&self, call: &Call<'_>, input: &Tensor, output: Tensor) -> candle_core::Result<Tensor> {
        if self.rows() == 0 {
            return Ok(output);
        }
        let terms = self.terms(|var| call.wide_tensor(var))?;
        let input = match call.training && self.dropout > 0.0 {
            true => call.dropout(&input.to_dtype(terms.a.dtype())?, self.dropout)?,
            false => input.clone(),
        };
        // PEFT adds in place: every adapter rounds to the layer's dtype.
        add_promoted(&output, &self.residual(&input, &terms)?)?.to_dtype(output.dtype())
    }

    fn low_rank(&self, call: &Call<'_>) -> candle_core::Result<Option<LowRank>> {
        let drops = call.training && self.dropout > 0.0;
        let is_conv = matches!(self.geometry, Geometry::Conv { .. });
        if drops || is_conv || self.rows() == 0 {
            Ok(None)
        } else {
            self.terms(|var| call.wide_tensor(var)).map(Some)
        }
    }

    fn merge(&self, _: &Site<'_>, parameters: LinearParameters) -> Result<LinearParameters, MergeError> {
        if self.rows() == 0 {
            return Ok(parameters);
        }
        let terms = self.terms(widened_value)?;
        let delta = self.geometry.low_rank_delta(&terms)?;
        let dtype = promoted(parameters.weight.dtype(), delta.dtype());
        let weight = (parameters.weight.to_dtype(dtype)? + delta.to_dtype(dtype)?)?;
        Ok(LinearParameters { weight: weight.to_dtype(parameters.weight.dtype())?, bias: parameters.bias })
    }

    fn scaling(&self) -> Option<f64> {
        Some(self.scaling)
    }

    fn with_scaling(&self, scaling: f64) -> Option<Arc<dyn Adapter>> {
        Some(Arc::new(Self { scaling, ..self.clone() }))
    }

    fn label(&self) -> &'static str {
        "AdaLoRA"
    }

    fn rank(&self) -> Option<usize> {
        Some(self.kept_rank())
    }

    /// A includes the singular values; `None` if no rank is left.
    fn low_rank_update(&self) -> candle_core::Result<Option<LowRank>> {
        if self.rows() == 0 { Ok(None) } else { self.terms(widened_value).map(Some) }
    }

    /// The LoRA factors that compute the same: A includes the singular values. If no rank is left, one rank of zeros.
    fn plain_factors(&self) -> candle_core::Result<Option<PlainFactors>> {
        let geometry = &self.geometry;
        let factors = |a, b, scaling| {
            let (a, b) = ((LAYER_KEYS.a, a), (LAYER_KEYS.b, b));
            Some(PlainFactors { a, b, bias: None, scaling, restores: false })
        };
        let rank = self.rows();
        if rank == 0 {
            let zeros = |shape: Vec<usize>| Tensor::zeros(shape, self.a.dtype(), self.a.device());
            return Ok(factors(zeros(geometry.down_shape(1))?, zeros(geometry.up_shape(1))?, 0.0));
        }
        let LowRank { a, b, scaling } = self.terms(widened_value)?;
        Ok(factors(a.reshape(geometry.down_shape(rank))?, b.reshape(geometry.up_shape(rank))?, scaling))
    }

    fn components(&self) -> Vec<Component> {
        vec![
            Component::modules("lora_dropout", Some(describe_dropout(self.dropout))),
            Component::tensors(A, Some(&self.a)),
            Component::tensors(B, Some(&self.b)),
            Component::tensors("lora_embedding_A", None),
            Component::tensors("lora_embedding_B", None),
            Component::modules("lora_magnitude_vector", None),
            Component::tensors(E, Some(&self.e)),
            Component::tensors(RANK_NUMBER, Some(&self.rank_number)),
        ]
    }

    fn tree_type(&self) -> Option<&'static str> {
        Some(match &self.geometry {
            Geometry::Conv { .. } => "adalora.SVDConv2d",
            _ => "adalora.SVDLinear",
        })
    }
}
