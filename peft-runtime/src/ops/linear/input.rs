//! What a layer reads: a tensor, or a product that is computed wherever it is read.

use candle_core::{Result, Tensor};

use crate::ops::gated::{swiglu, swiglu_gradients};

/// The input of a layer.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum LayerInput<'t> {
    /// A tensor.
    Tensor(&'t Tensor),
    /// `silu(gate) ∘ up`, as [`swiglu`] computes it. An op that computes it itself, in both passes, keeps it out of the
    /// graph.
    Swiglu {
        /// What goes through the activation.
        gate: &'t Tensor,
        /// What it is multiplied by, of the same shape.
        up: &'t Tensor,
    },
}

impl<'t> LayerInput<'t> {
    /// The input as a tensor, as part of the graph.
    ///
    /// # Errors
    /// If the factors of a product do not fit.
    pub fn tensor(&self) -> Result<Tensor> {
        match *self {
            Self::Tensor(x) => Ok(x.clone()),
            Self::Swiglu { gate, up } => swiglu(gate, up),
        }
    }

    /// The input outside of any graph.
    pub(super) fn constant(&self) -> Result<Tensor> {
        match *self {
            Self::Tensor(x) => Ok(x.detach()),
            Self::Swiglu { gate, up } => swiglu(&gate.detach(), &up.detach()),
        }
    }

    /// What the input is made of; the first has its shape.
    pub(super) fn parts(&self) -> (&'t Tensor, Option<&'t Tensor>) {
        match *self {
            Self::Tensor(x) => (x, None),
            Self::Swiglu { gate, up } => (gate, Some(up)),
        }
    }

    /// The gradients of the parts that are part of a graph, from that of the input. `gradient` is called only
    /// if there are any.
    pub(super) fn gradients(
        &self,
        gradient: impl FnOnce() -> Result<Tensor>,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (first, second) = self.parts();
        if !first.track_op() && !second.is_some_and(Tensor::track_op) {
            return Ok((None, None));
        }
        let gradient = gradient()?.reshape(first.dims())?;
        match second {
            None => Ok((Some(gradient), None)),
            Some(up) => swiglu_gradients(first, up, &gradient),
        }
    }
}
