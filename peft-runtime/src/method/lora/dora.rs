//! DoRA: LoRA adapts the weight's direction, and a vector its magnitude. <https://arxiv.org/abs/2402.09353>
//!
//! W' = m ⊙ (W + s·B·A) / ‖W + s·B·A‖, with one magnitude for each output. The norm is a constant in the backward pass.

use candle_core::{DType, Result, Tensor, Var};

use crate::adapter::{AdapterTensor, Call, Geometry, LinearParameters, LowRank, Site};
use crate::ops::constant::div_constant;
use crate::ops::matmul::product;
use crate::ops::scale::scale_features;
use crate::ops::{add_promoted, promoted, widened_value};
use crate::schema::Family;

pub(super) const KEY: &str = "lora_magnitude_vector";
/// The other end that PEFT has written for the same tensor.
pub(super) const LAYER_KEY: &str = "lora_magnitude_vector.weight";

/// The magnitudes m, one for each output: `[out]`, or `[1, out, 1, …]` for a convolution.
#[derive(Clone, Debug)]
pub(super) struct Magnitude {
    var: Var,
}

/// The shape of a layer's magnitudes.
pub(super) fn shape(geometry: &Geometry) -> Vec<usize> {
    match geometry {
        Geometry::Conv { out_channels, kernel, .. } => {
            let mut shape = vec![1, *out_channels];
            shape.resize(2 + kernel.len(), 1);
            shape
        }
        other => vec![other.out_features()],
    }
}

/// ‖W + s·B·A‖ for each output, `[out]`, in f32 or wider.
pub(super) fn norm(geometry: &Geometry, weight: &Tensor, terms: &LowRank) -> Result<Tensor> {
    let dtype = promoted(weight.dtype(), terms.a.dtype());
    let dtype = if matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype };
    let rank = terms.a.dim(0)?;
    let a = terms.a.detach().to_dtype(dtype)?.reshape((rank, ()))?;
    // With groups, PEFT's view of B has fewer rows and more ranks, and the product is reshaped to the weight's shape.
    let b = terms.b.detach().to_dtype(dtype)?.reshape(((), rank))?;
    let weight = geometry.to_matrix(&weight.detach().to_dtype(dtype)?)?;
    let delta = product(&b, &a, terms.scaling)?.reshape(weight.shape())?;
    (weight + delta)?.sqr()?.sum(1)?.sqrt()
}

impl Magnitude {
    pub(super) fn new(var: Var) -> Self {
        Self { var }
    }

    pub(super) fn tensor(&self) -> AdapterTensor<'_> {
        AdapterTensor::new(KEY, &self.var)
    }

    /// k = m / ‖W + s·B·A‖, `[out]`.
    fn factor(
        &self,
        magnitude: &Tensor,
        geometry: &Geometry,
        weight: &Tensor,
        terms: &LowRank,
    ) -> Result<Tensor> {
        div_constant(&magnitude.flatten_all()?, &norm(geometry, weight, terms)?.to_dtype(magnitude.dtype())?)
    }

    /// k ⊙ (y − b + residual) + b; with dropout, the base's part is computed from the input after dropout.
    pub(super) fn adapt_output(
        &self,
        geometry: &Geometry,
        terms: &LowRank,
        call: &Call<'_>,
        dropped: Option<&Tensor>,
        residual: &Tensor,
        output: &Tensor,
    ) -> Result<Tensor> {
        let axis = call.geometry.feature_axis();
        let magnitude = call.wide_tensor(&self.var)?;
        let factor = self.factor(&magnitude, call.geometry, &call.weight()?, terms)?;
        let bias = match call.bias.filter(|_| geometry.family() != Family::Embedding) {
            Some(bias) => {
                let bias = call.geometry.over_output(&bias.to_dtype(residual.dtype())?)?;
                Some(bias.broadcast_as(output.shape())?.contiguous()?)
            }
            None => None,
        };
        let without_bias = |y: &Tensor| match &bias {
            Some(bias) => add_promoted(&y.to_dtype(residual.dtype())?, &bias.neg()?),
            None => y.to_dtype(residual.dtype()),
        };
        if let Some(dropped) = dropped {
            // y + (k − 1)·W·x̃ + k·residual
            let base = without_bias(&call.base_output(dropped)?)?;
            let scaled = scale_features(&add_promoted(&base, residual)?, &factor, axis)?;
            return add_promoted(output, &add_promoted(&scaled, &base.neg()?)?);
        }
        let scaled = scale_features(&add_promoted(&without_bias(output)?, residual)?, &factor, axis)?;
        match &bias {
            Some(bias) => add_promoted(&scaled, bias),
            None => Ok(scaled),
        }
    }

    /// k ⊙ (`running` + s·B·A), with the norm of the layer's own weight.
    ///
    /// What adapters before this one added to the bias is scaled as well: the forward pass subtracts only the layer's
    /// own.
    pub(super) fn merge(
        &self,
        geometry: &Geometry,
        terms: &LowRank,
        site: &Site<'_>,
        running: LinearParameters,
    ) -> Result<LinearParameters> {
        let LinearParameters { weight, bias } = running;
        let own = site.dense_weight()?;
        let factor = self.factor(&widened_value(&self.var)?, geometry, &own, terms)?;
        let dtype = promoted(weight.dtype(), factor.dtype());
        let factor = factor.to_dtype(dtype)?;
        let delta = geometry.low_rank_delta(terms)?.to_dtype(dtype)?;
        let matrix = geometry.to_matrix(&(weight.to_dtype(dtype)? + delta)?)?;
        let scaled = geometry.stored_from_matrix(&matrix.broadcast_mul(&factor.unsqueeze(1)?)?)?;
        let bias = match (bias, &site.bias) {
            (Some(bias), Some(own)) => {
                let own = own.to_dtype(dtype)?;
                let added = ((bias.to_dtype(dtype)? - &own)? * factor)?;
                Some((added + own)?.to_dtype(bias.dtype())?)
            }
            (bias, _) => bias,
        };
        Ok(LinearParameters { weight: scaled.contiguous()?.to_dtype(weight.dtype())?, bias })
    }
}
