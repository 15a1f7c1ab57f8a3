//! The layer that an adapter is made for or merged into.

use candle_core::{DType, Device, Tensor};

use super::Geometry;
use crate::error::{Error, Result};
use crate::path::ModulePath;
use crate::schema::LayerKind;

/// The layer that an adapter is made for or merged into.
pub struct Site<'a> {
    /// Where the layer is.
    pub path: &'a ModulePath,
    /// What kind of layer it is.
    pub kind: LayerKind,
    /// Its shape.
    pub geometry: &'a Geometry,
    /// The dtype of its weight.
    pub dtype: DType,
    /// Where its weight is.
    pub device: &'a Device,
    /// Its bias.
    pub bias: Option<Tensor>,
    /// Whether adapters on half precision are held in f32.
    pub(crate) autocasts: bool,
    /// Its weight, made dense when it is asked for.
    pub(crate) weight: &'a dyn Fn() -> candle_core::Result<Tensor>,
}

impl Site<'_> {
    /// The layer's own weight, dense, outside of any graph.
    ///
    /// # Errors
    /// If a compressed weight cannot be made dense.
    pub fn weight(&self) -> Result<Tensor> {
        (self.weight)().map_err(Error::on_layer(self.path))
    }

    /// The same, with candle's own error.
    pub(crate) fn dense_weight(&self) -> candle_core::Result<Tensor> {
        (self.weight)()
    }

    /// The dtype of adapter tensors on this layer: its own, but f32 instead of half precision, as in PEFT. Where the adapter is
    /// to be held in the base model's precision (`autocast_adapter_dtype`), half precision stays.
    pub fn adapter_dtype(&self) -> DType {
        match self.dtype {
            half @ (DType::F16 | DType::BF16) if !self.autocasts => half,
            _ => self.wide_dtype(),
        }
    }

    /// The dtype in which start values are computed.
    pub(crate) fn wide_dtype(&self) -> DType {
        match self.dtype {
            DType::F64 => DType::F64,
            _ => DType::F32,
        }
    }
}
