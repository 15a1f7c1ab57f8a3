//! One forward pass through one layer, as an adapter sees it.

use candle_core::{Tensor, Var};

use super::Geometry;
use crate::ops::random::DropoutStream;
use crate::ops::widened;

/// One forward pass through one layer.
pub struct Call<'a> {
    /// The layer's shape.
    pub geometry: &'a Geometry,
    /// The layer's bias.
    pub bias: Option<&'a Tensor>,
    /// The layer's weight, made dense when it is asked for.
    pub(crate) weight: &'a dyn Fn() -> candle_core::Result<Tensor>,
    pub(crate) base: &'a dyn Fn(&Tensor) -> candle_core::Result<Tensor>,
    /// Whether dropout is applied.
    pub training: bool,
    /// Whether the adapter's tensors are part of the graph.
    pub(crate) tracks: bool,
    pub(crate) dropout: &'a DropoutStream,
}

impl Call<'_> {
    /// The variable as part of the graph, or only its value if the adapter does not train.
    pub fn tensor(&self, var: &Var) -> Tensor {
        if self.tracks { var.as_tensor().clone() } else { var.as_detached_tensor() }
    }

    /// [`tensor`](Self::tensor), in f32 if the adapter is held in half precision: what is computed with it is then rounded only
    /// at the end, and so is its gradient.
    ///
    /// # Errors
    /// If a device operation fails.
    pub fn wide_tensor(&self, var: &Var) -> candle_core::Result<Tensor> {
        widened(&self.tensor(var))
    }

    /// The input with elements dropped at random, in training mode.
    ///
    /// # Errors
    /// If a device operation fails.
    pub fn dropout(&self, x: &Tensor, probability: f64) -> candle_core::Result<Tensor> {
        if self.training && probability > 0.0 { self.dropout.apply(x, probability) } else { Ok(x.clone()) }
    }

    /// The layer's own weight, dense, outside of any graph.
    ///
    /// # Errors
    /// If a compressed weight cannot be made dense.
    pub fn weight(&self) -> candle_core::Result<Tensor> {
        (self.weight)()
    }

    /// What the layer computes without adapters.
    ///
    /// # Errors
    /// If the input's shape does not fit.
    pub fn base_output(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        (self.base)(x)
    }
}
