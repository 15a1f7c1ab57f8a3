//! LoKr: y += s·(W₁ ⊗ W₂)·x. <https://arxiv.org/abs/2309.14859>

mod config;
mod factorization;
mod method;

use std::sync::Arc;

use candle_core::{Result as CandleResult, Tensor, Var};

use super::weight_delta::{DeltaDropout, add_to_weight, apply, core_product, times_transposed};
use crate::adapter::{Adapter, AdapterTensor, Call, Component, Geometry, LinearParameters, MergeError, Site};
use crate::ops::widened_value;

pub use config::{LokrConfig, LokrInit, LokrSettings, LokrShape};
pub(crate) use factorization::factorization;

const W1: &str = "lokr_w1";
const W1_A: &str = "lokr_w1_a";
const W1_B: &str = "lokr_w1_b";
const W2: &str = "lokr_w2";
const W2_A: &str = "lokr_w2_a";
const W2_B: &str = "lokr_w2_b";
const T2: &str = "lokr_t2";
/// All keys, in PEFT's order.
const KEYS: [&str; 7] = [W1, W1_A, W1_B, W2, W2_A, W2_B, T2];

/// The LoKr state of one layer: W₁ `[a, c]` and W₂ `[b, d, …kernel]` of a weight `[a·b, c·d, …kernel]`.
#[derive(Clone, Debug)]
pub struct Lokr {
    first: Matrix,
    second: Matrix,
    rank: usize,
    scaling: f64,
    dropout: DeltaDropout,
    geometry: Geometry,
}

/// One of the two matrices.
#[derive(Clone, Debug)]
enum Matrix {
    /// As it is.
    Whole(Var),
    /// A product of factors, `[outputs, rank]` and `[rank, inputs · kernel]`.
    Product(Var, Var),
    /// A core `[rank, rank, …kernel]` with factors `[rank, outputs]` and `[rank, inputs]`.
    Core { core: Var, left: Var, right: Var },
}

impl Matrix {
    fn value(&self, tensor: impl Fn(&Var) -> CandleResult<Tensor>) -> CandleResult<Tensor> {
        match self {
            Self::Whole(whole) => tensor(whole),
            Self::Product(left, right) => tensor(left)?.matmul(&tensor(right)?),
            Self::Core { core, left, right } => core_product(&tensor(core)?, &tensor(left)?, &tensor(right)?),
        }
    }

    /// The tensors, each with its key from `[whole, left, right, core]`.
    fn tensors(&self, [whole, left, right, core]: [&'static str; 4]) -> Vec<(&'static str, &Var)> {
        match self {
            Self::Whole(own) => vec![(whole, own)],
            Self::Product(a, b) => vec![(left, a), (right, b)],
            Self::Core { core: own, left: a, right: b } => vec![(left, a), (right, b), (core, own)],
        }
    }
}

impl Lokr {
    fn named_tensors(&self) -> Vec<(&'static str, &Var)> {
        // W₁ never has a core.
        let first = self.first.tensors([W1, W1_A, W1_B, T2]);
        first.into_iter().chain(self.second.tensors([W2, W2_A, W2_B, T2])).collect()
    }

    /// ΔW in the shape of the weight: element `(α·b + β, γ·d + δ, κ)` is `s · W₁[α, γ] · W₂[β, δ, κ]`.
    fn delta(&self, tensor: impl Fn(&Var) -> CandleResult<Tensor>) -> CandleResult<Tensor> {
        let first = (self.first.value(&tensor)? * self.scaling)?;
        let second = self.second.value(&tensor)?;
        let shape = self.geometry.weight_shape();
        let (a, c) = first.dims2()?;
        let (outputs, inputs) = (shape[0] / a.max(1), shape[1] / c.max(1));
        let second = second.reshape((outputs, inputs, ()))?;
        let elements = second.dim(2)?;
        // PEFT multiplies out a whole W₂ of a one-dimensional convolution in another order, which files follow.
        let swaps = shape.len() == 3 && matches!(self.second, Matrix::Whole(_));
        let product = if swaps {
            first
                .reshape((1, a, 1, c, 1))?
                .broadcast_mul(&second.reshape((outputs, 1, inputs, 1, elements))?)?
        } else {
            first
                .reshape((a, 1, c, 1, 1))?
                .broadcast_mul(&second.reshape((1, outputs, 1, inputs, elements))?)?
        };
        product.reshape(shape)
    }

    /// `s · (W₁ ⊗ W₂) · x` without the Kronecker product, for `x` with `c·d` elements in its last dimension.
    fn multiply(&self, call: &Call<'_>, x: &Tensor) -> CandleResult<Tensor> {
        let first = (self.first.value(|var| call.wide_tensor(var))? * self.scaling)?;
        let second = self.second.value(|var| call.wide_tensor(var))?;
        let ((a, c), (b, d)) = (first.dims2()?, second.dims2()?);
        let mut shape = x.dims().to_vec();
        shape.pop();
        shape.push(a * b);
        let rows = x.elem_count() / (c * d).max(1);
        // [rows · c, d] · [d, b], then [rows · b, c] · [c, a]
        let inner = times_transposed(&x.to_dtype(second.dtype())?.reshape((rows * c, d))?, &second)?;
        let inner = inner.reshape((rows, c, b))?.transpose(1, 2)?.contiguous()?;
        let outer = times_transposed(&inner.reshape((rows * b, c))?, &first)?;
        outer.reshape((rows, b, a))?.transpose(1, 2)?.reshape(shape)
    }
}

impl Adapter for Lokr {
    fn tensors(&self) -> Vec<AdapterTensor<'_>> {
        self.named_tensors().into_iter().map(|(key, var)| AdapterTensor::new(key, var)).collect()
    }

    fn adapt_output(&self, call: &Call<'_>, input: &Tensor, output: Tensor) -> CandleResult<Tensor> {
        let part = match &self.geometry {
            Geometry::Linear { .. } => self.multiply(call, input)?,
            geometry => apply(geometry, &self.delta(|var| call.wide_tensor(var))?, input)?,
        };
        self.dropout.add(call, &self.geometry, &output, &part)
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
        "LoKr"
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank)
    }

    fn dense_update(&self) -> CandleResult<Option<Tensor>> {
        self.delta(widened_value)?.flatten_from(1).map(Some)
    }

    fn components(&self) -> Vec<Component> {
        let own = self.named_tensors();
        let find = |name: &str| own.iter().find(|(key, _)| *key == name).map(|(_, var)| var.as_tensor());
        KEYS.into_iter().map(|name| Component::tensors(name, find(name))).collect()
    }

    fn tree_prefix(&self) -> Option<&'static str> {
        Some("lokr")
    }
}
