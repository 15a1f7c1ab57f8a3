//! What LoRA does to a layer.

use std::sync::Arc;

use candle_core::Tensor;

use super::dora::Magnitude;
use super::tied::TiedLora;
use super::{BIAS_KEY, Lora, Start, sum_in, tree};
use crate::adapter::{
    Adapter, AdapterTensor, Call, Component, Geometry, LinearParameters, LowRank, MergeError, PlainFactors,
    Site,
};
use crate::ops::{add_promoted, widened_value};

impl Adapter for Lora {
    fn tensors(&self) -> Vec<AdapterTensor<'_>> {
        let mut tensors =
            vec![AdapterTensor::new(self.keys.a, &self.a), AdapterTensor::new(self.keys.b, &self.b)];
        tensors.extend(self.b_bias.as_ref().map(|bias| AdapterTensor::new(BIAS_KEY, bias)));
        tensors.extend(self.magnitude.as_ref().map(Magnitude::tensor));
        tensors
    }

    fn adapt_output(&self, call: &Call<'_>, input: &Tensor, output: Tensor) -> candle_core::Result<Tensor> {
        let terms = self.terms(call)?;
        let dropped = match self.acts_with_dropout(call) {
            true => Some(call.dropout(&input.to_dtype(terms.a.dtype())?, self.dropout)?),
            false => None,
        };
        let residual = self.geometry.low_rank(dropped.as_ref().unwrap_or(input), &terms)?;
        if let Some(magnitude) = &self.magnitude {
            return magnitude.adapt_output(
                &self.geometry,
                &self.constant_terms()?,
                call,
                dropped.as_ref(),
                &residual,
                &output,
            );
        }
        let output = add_promoted(&output, &residual)?;
        match &self.b_bias {
            None => Ok(output),
            Some(bias) => {
                let bias = self.geometry.over_output(&(call.wide_tensor(bias)? * self.scaling)?)?;
                output.broadcast_add(&bias.to_dtype(output.dtype())?)
            }
        }
    }

    fn low_rank(&self, call: &Call<'_>) -> candle_core::Result<Option<LowRank>> {
        let plain = !self.acts_with_dropout(call) && self.b_bias.is_none() && self.magnitude.is_none();
        plain.then(|| self.terms(call)).transpose()
    }

    fn weight_delta(&self, call: &Call<'_>) -> candle_core::Result<Option<Tensor>> {
        self.geometry.tracked_delta(&self.terms(call)?).map(Some)
    }

    fn merge(&self, site: &Site<'_>, parameters: LinearParameters) -> Result<LinearParameters, MergeError> {
        if let Geometry::Conv { settings, .. } = &self.geometry
            && settings.groups > 1
        {
            let reason = format!("no convolution with {} groups computes the same", settings.groups);
            return Err(MergeError::Impossible(reason));
        }
        if let Some(magnitude) = &self.magnitude {
            return Ok(magnitude.merge(&self.geometry, &self.constant_terms()?, site, parameters)?);
        }
        let weight = sum_in(&parameters.weight, &self.geometry.low_rank_delta(&self.constant_terms()?)?)?;
        let bias = match (&self.b_bias, parameters.bias) {
            (None, bias) => bias,
            (Some(delta), Some(bias)) => Some(sum_in(&bias, &(widened_value(delta)? * self.scaling)?)?),
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

    fn for_original_base(&self) -> candle_core::Result<Option<Vec<(&'static str, Tensor)>>> {
        self.relative_to_original().map(|factors| Some(factors.to_vec()))
    }

    fn tied_to(&self, geometry: Geometry) -> Option<Arc<dyn Adapter>> {
        TiedLora::of(self, geometry).map(|tied| -> Arc<dyn Adapter> { Arc::new(tied) })
    }

    fn mixes_in_a_batch(&self) -> bool {
        self.magnitude.is_none()
    }

    fn label(&self) -> &'static str {
        if self.magnitude.is_some() { "DoRA" } else { "LoRA" }
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank)
    }

    /// For DoRA, this is the update before the magnitudes are applied; with groups, the update is not a matrix.
    fn low_rank_update(&self) -> candle_core::Result<Option<LowRank>> {
        if let Geometry::Conv { settings, .. } = &self.geometry
            && settings.groups > 1
        {
            return Ok(None);
        }
        if let Geometry::Experts { .. } = &self.geometry {
            return Ok(None);
        }
        let LowRank { a, b, scaling } = self.constant_terms()?;
        let (a, b) = (a.reshape((self.rank, ()))?, b.reshape((self.geometry.out_features(), self.rank))?);
        Ok(Some(LowRank { a, b, scaling }))
    }

    /// The matrices of experts one below the other.
    fn dense_update(&self) -> candle_core::Result<Option<Tensor>> {
        match &self.geometry {
            Geometry::Experts { .. } => {
                self.geometry.low_rank_delta(&self.constant_terms()?)?.flatten(0, 1).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The factors for the base weight as it was before the adapter changed it, and whatever else the adapter adds.
    fn plain_factors(&self) -> candle_core::Result<Option<PlainFactors>> {
        let restores = self.start().is_some();
        let (a, b) = if restores {
            let [(_, a), (_, b)] = self.relative_to_original()?;
            (a, b)
        } else {
            (self.a.as_detached_tensor(), self.b.as_detached_tensor())
        };
        let bias = self.b_bias.as_ref().map(|bias| (BIAS_KEY, bias.as_detached_tensor()));
        let (a, b) = ((self.keys.a, a), (self.keys.b, b));
        Ok(Some(PlainFactors { a, b, bias, scaling: self.scaling, restores }))
    }

    fn components(&self) -> Vec<Component> {
        tree::components(self)
    }

    fn tree_prefix(&self) -> Option<&'static str> {
        Some("lora")
    }
}
