//! A linear layer that is dense or quantized, depending on the file it is loaded from.

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor};
use candle_nn::{Linear, Module};

use super::{Adapted, BaseLayer, LayerInput, ParameterMap, QuantizedLinear};
use crate::adapter::{Geometry, LowRank};
use crate::error::Result;
use crate::schema::{Family, LayerKind};

/// A linear layer with a weight of shape `[out, in]`, dense or quantized.
///
/// Models hold it as `Adapted<AnyLinear>`, so that one model type takes weights of either kind.
///
/// ```
/// use candle_core::quantized::GgmlDType;
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::Linear;
/// use peft_runtime::nn::{AnyLinear, QuantizedLinear};
/// use peft_runtime::prelude::*;
///
/// #[derive(Injectable)]
/// struct Model {
///     proj: Adapted<AnyLinear>,
/// }
///
/// let dense = Linear::new(Tensor::ones((8, 64), DType::F32, &Device::Cpu)?, None);
/// let quantized = QuantizedLinear::from_linear(&dense, GgmlDType::Q8_0)?;
/// let mut model = Model { proj: AnyLinear::from(quantized).into() };
/// model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(["proj"]), "default")?;
/// assert!(model.merge_adapters(&MergeOptions::active()).is_err());
/// model.proj.dequantize()?;
/// model.merge_adapters(&MergeOptions::active())?;
/// # Ok::<(), peft_runtime::Error>(())
/// ```
#[derive(Clone, Debug)]
pub enum AnyLinear {
    /// The weight is a tensor.
    Dense(Linear),
    /// The weight is quantized.
    Quantized(QuantizedLinear),
}

impl AnyLinear {
    /// The layer with a dense weight: itself, or the result of [`QuantizedLinear::dequantize`].
    ///
    /// # Errors
    /// If a device operation fails.
    pub fn dequantize(&self) -> candle_core::Result<Linear> {
        match self {
            Self::Dense(layer) => Ok(layer.clone()),
            Self::Quantized(layer) => layer.dequantize(),
        }
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Option<&Tensor> {
        match self {
            Self::Dense(layer) => layer.bias(),
            Self::Quantized(layer) => layer.bias(),
        }
    }
}

impl Adapted<AnyLinear> {
    /// Makes the layer's own weight dense if it is quantized; adapters stay, and can then be merged.
    ///
    /// # Errors
    /// If a device operation fails; the layer is then unchanged.
    pub fn dequantize(&mut self) -> candle_core::Result<()> {
        let base = match self {
            Self::Base(layer) => layer,
            Self::Stacked(stacked) => &mut stacked.base,
        };
        if let AnyLinear::Quantized(layer) = base {
            let dense = layer.dequantize()?;
            *base = AnyLinear::Dense(dense);
        }
        Ok(())
    }
}

impl From<Linear> for AnyLinear {
    fn from(layer: Linear) -> Self {
        Self::Dense(layer)
    }
}

impl From<QuantizedLinear> for AnyLinear {
    fn from(layer: QuantizedLinear) -> Self {
        Self::Quantized(layer)
    }
}

impl Module for AnyLinear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.forward_base(x)
    }
}

impl BaseLayer for AnyLinear {
    const KIND: LayerKind = LayerKind::new("Linear", Family::Linear);

    fn geometry(&self) -> Geometry {
        match self {
            Self::Dense(layer) => layer.geometry(),
            Self::Quantized(layer) => layer.geometry(),
        }
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Dense(layer) => layer.parameters(),
            Self::Quantized(layer) => layer.parameters(),
        }
    }

    fn map_parameters(&self, map: &mut ParameterMap<'_>) -> Result<Self> {
        match self {
            Self::Dense(layer) => layer.map_parameters(map).map(Self::Dense),
            Self::Quantized(layer) => layer.map_parameters(map).map(Self::Quantized),
        }
    }

    fn forward_base(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Dense(layer) => layer.forward_base(x),
            Self::Quantized(layer) => layer.forward_base(x),
        }
    }

    fn forward_low_rank(&self, x: &Tensor, terms: &LowRank) -> Option<candle_core::Result<Tensor>> {
        match self {
            Self::Dense(layer) => layer.forward_low_rank(x, terms),
            Self::Quantized(layer) => layer.forward_low_rank(x, terms),
        }
    }

    fn forward_sum(
        &self,
        input: LayerInput<'_>,
        terms: Option<&LowRank>,
        residual: &Tensor,
    ) -> Option<candle_core::Result<Tensor>> {
        match self {
            Self::Dense(layer) => layer.forward_sum(input, terms, residual),
            Self::Quantized(layer) => layer.forward_sum(input, terms, residual),
        }
    }

    fn dtype_and_device(&self) -> (DType, Device) {
        match self {
            Self::Dense(layer) => layer.dtype_and_device(),
            Self::Quantized(layer) => layer.dtype_and_device(),
        }
    }

    fn dense_weight(&self) -> candle_core::Result<Tensor> {
        match self {
            Self::Dense(layer) => layer.dense_weight(),
            Self::Quantized(layer) => layer.dense_weight(),
        }
    }

    fn quantized_weight(&self) -> Option<&Arc<QTensor>> {
        match self {
            Self::Dense(_) => None,
            Self::Quantized(layer) => layer.quantized_weight(),
        }
    }

    fn with_quantized_weight(&self, weight: Arc<QTensor>) -> Option<candle_core::Result<Self>> {
        match self {
            Self::Dense(_) => None,
            Self::Quantized(layer) => Some(layer.with_quantized_weight(weight)?.map(Self::Quantized)),
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Dense(layer) => layer.describe(),
            Self::Quantized(layer) => layer.describe(),
        }
    }
}
