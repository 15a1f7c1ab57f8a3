//! A layer kind: a linear layer that counts its passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Result as CandleResult, Tensor};
use candle_nn::Module;
use peft_runtime::Result;
use peft_runtime::adapter::Geometry;
use peft_runtime::layer::{BaseLayer, ParameterMap};
use peft_runtime::module::{Cursor, CursorMut, Injectable};
use peft_runtime::nn::linear_forward;
use peft_runtime::schema::{Family, LayerKind, Schema};

/// `y = x·Wᵀ + b`, which counts how often it is computed.
#[derive(Clone, Debug)]
pub struct CountedLinear {
    weight: Tensor,
    bias: Tensor,
    calls: Arc<AtomicUsize>,
}

impl CountedLinear {
    /// A layer with a weight of shape `[out, in]` and a bias of shape `[out]`.
    pub fn new(weight: Tensor, bias: Tensor) -> Self {
        Self { weight, bias, calls: Arc::default() }
    }

    /// How often the layer and its copies were computed.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Module for CountedLinear {
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        self.forward_base(x)
    }
}

impl BaseLayer for CountedLinear {
    const KIND: LayerKind = LayerKind::new("CountedLinear", Family::Linear);

    fn geometry(&self) -> Geometry {
        match *self.weight.dims() {
            [out_features, in_features] => Geometry::Linear { in_features, out_features, transposed: false },
            _ => Geometry::Opaque,
        }
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("weight", &self.weight), ("bias", &self.bias)]
    }

    fn map_parameters(&self, map: &mut ParameterMap<'_>) -> Result<Self> {
        let (weight, bias) = (map("weight", &self.weight)?, map("bias", &self.bias)?);
        Ok(Self { weight, bias, calls: Arc::clone(&self.calls) })
    }

    fn forward_base(&self, x: &Tensor) -> CandleResult<Tensor> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        linear_forward(x, &self.weight, Some(&self.bias))
    }

    fn describe(&self) -> String {
        let geometry = self.geometry();
        format!(
            "CountedLinear(in_features={}, out_features={})",
            geometry.in_features(),
            geometry.out_features()
        )
    }
}

/// The layer without a place for adapters.
impl Injectable for CountedLinear {
    const SCHEMA: &'static Schema = &Schema::plain(<Self as BaseLayer>::KIND);

    fn visit<'a>(&'a self, cursor: &mut Cursor<'a>) {
        cursor.leaf(self);
    }

    fn visit_mut<'a>(&'a mut self, cursor: &mut CursorMut<'a>) {
        cursor.leaf(self);
    }
}
