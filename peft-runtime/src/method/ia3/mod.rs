//! IA3: the input or the output of a layer times a vector. <https://arxiv.org/abs/2205.05638>

mod config;
mod default_targets;
mod method;

use candle_core::{Tensor, Var};

use crate::adapter::{Adapter, AdapterTensor, Call, Component, Geometry, LinearParameters, MergeError, Site};
use crate::ops::scale::scale_features;
use crate::ops::{promoted, widened_value};

pub use config::{Ia3Config, Ia3Settings};

const KEY: &str = "ia3_l";

/// The IA3 state of one layer: a vector over its output features or, on feed-forward layers, over its input features.
#[derive(Clone, Debug)]
pub struct Ia3 {
    vector: Var,
    feedforward: bool,
    geometry: Geometry,
}

impl Ia3 {
    fn scale(&self, call: &Call<'_>, x: &Tensor) -> candle_core::Result<Tensor> {
        let vector = call.wide_tensor(&self.vector)?.flatten_all()?;
        scale_features(x, &vector, self.geometry.feature_axis())?.to_dtype(x.dtype())
    }
}

/// `(out, 1)` or `(1, in)`; for a convolution, `(1, channels, 1, 1)`.
fn shape(geometry: &Geometry, feedforward: bool) -> Vec<usize> {
    let features = if feedforward { geometry.in_features() } else { geometry.out_features() };
    match geometry {
        Geometry::Conv { kernel, .. } => {
            let mut shape = vec![1, features];
            shape.resize(2 + kernel.len(), 1);
            shape
        }
        _ if feedforward => vec![1, features],
        _ => vec![features, 1],
    }
}

impl Adapter for Ia3 {
    fn tensors(&self) -> Vec<AdapterTensor<'_>> {
        vec![AdapterTensor::new(KEY, &self.vector)]
    }

    fn adapt_input(&self, call: &Call<'_>, input: &Tensor) -> candle_core::Result<Option<Tensor>> {
        if self.feedforward { self.scale(call, input).map(Some) } else { Ok(None) }
    }

    fn adapt_output(&self, call: &Call<'_>, _: &Tensor, output: Tensor) -> candle_core::Result<Tensor> {
        if self.feedforward { Ok(output) } else { self.scale(call, &output) }
    }

    fn merge(&self, _: &Site<'_>, parameters: LinearParameters) -> Result<LinearParameters, MergeError> {
        let LinearParameters { weight, bias } = parameters;
        let vector = widened_value(&self.vector)?.flatten_all()?;
        let dtype = promoted(weight.dtype(), vector.dtype());
        let vector = vector.to_dtype(dtype)?;
        let matrix = self.geometry.to_matrix(&weight.to_dtype(dtype)?)?;
        let scaled = if self.feedforward {
            self.geometry.scale_matrix_inputs(&matrix, &vector)?
        } else {
            matrix.broadcast_mul(&vector.unsqueeze(1)?)?
        };
        let scaled = self.geometry.stored_from_matrix(&scaled)?.contiguous()?.to_dtype(weight.dtype())?;
        let bias = match bias {
            Some(bias) if !self.feedforward => {
                Some((bias.to_dtype(dtype)? * &vector)?.to_dtype(bias.dtype())?)
            }
            bias => bias,
        };
        Ok(LinearParameters { weight: scaled, bias })
    }

    fn components(&self) -> Vec<Component> {
        vec![Component::tensors(KEY, Some(&self.vector))]
    }

    fn label(&self) -> &'static str {
        "IA3"
    }
}
