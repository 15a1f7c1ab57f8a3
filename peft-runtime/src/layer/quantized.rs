//! The linear layer with a weight in GGML's quantized blocks.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor, bail};
use candle_nn::{Linear, Module};

use super::{BaseLayer, LayerInput, ParameterMap, python_bool};
use crate::adapter::{Geometry, LowRank};
use crate::error::Result;
use crate::ops::linear::low_rank::{can_fuse_quantized, quantized_linear_low_rank};
use crate::ops::linear::quantized::quantized_linear;
use crate::ops::linear::residual::quantized_linear_add;
use crate::schema::{Family, LayerKind};

/// A linear layer whose weight is quantized: `y = x·Wᵀ + b`.
///
/// It computes what a dense layer with the dequantized weight does, in training and inference alike: unlike candle's
/// `QMatMul`, it does not round the input. On the CPU, neither the forward nor the backward pass holds more than a tile
/// of the dense weight; on other devices, the whole dense weight is in memory during a call.
///
/// The weight is frozen and is not a tensor: state dicts do not contain it, no copy of it can be trained, and adapters
/// are merged into it only by [`merge_and_requantize`](crate::PeftModel::merge_and_requantize).
/// [`dequantize`](Self::dequantize) makes a layer for which all of that is possible.
///
/// ```
/// use candle_core::quantized::GgmlDType;
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Linear, Module};
/// use peft_runtime::nn::QuantizedLinear;
///
/// let dense = Linear::new(Tensor::ones((8, 64), DType::F32, &Device::Cpu)?, None);
/// let layer = QuantizedLinear::from_linear(&dense, GgmlDType::Q4_1)?;
/// let y = layer.forward(&Tensor::ones((3, 64), DType::F32, &Device::Cpu)?)?;
/// assert_eq!(y.dims(), [3, 8]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct QuantizedLinear {
    weight: Arc<QTensor>,
    bias: Option<Tensor>,
}

impl QuantizedLinear {
    /// A layer with a weight of shape `[out, in]` and a bias of shape `[out]`.
    ///
    /// # Errors
    /// If the weight or the bias has another shape.
    pub fn new(weight: impl Into<Arc<QTensor>>, bias: Option<Tensor>) -> candle_core::Result<Self> {
        let weight = weight.into();
        let (out_features, in_features) = weight.shape().dims2()?;
        if let Some(bias) = &bias
            && bias.dims() != [out_features]
        {
            bail!(
                "a bias of shape {:?} does not fit a weight of shape {:?}",
                bias.dims(),
                [out_features, in_features]
            )
        }
        Ok(Self { weight, bias })
    }

    /// `linear` with its weight quantized.
    ///
    /// # Errors
    /// If the number of input features is not a multiple of the type's block size: 256 for the K types, 32 for the others, 1
    /// for floats.
    pub fn from_linear(linear: &Linear, dtype: GgmlDType) -> candle_core::Result<Self> {
        // candle quantizes all of the memory behind a tensor, including what a view leaves out.
        let weight = linear.weight().detach().to_dtype(DType::F32)?.force_contiguous()?;
        Self::new(QTensor::quantize(&weight, dtype)?, linear.bias().cloned())
    }

    /// The same layer with a dense weight in f32.
    ///
    /// # Errors
    /// If a device operation fails.
    pub fn dequantize(&self) -> candle_core::Result<Linear> {
        let bias = self.bias.as_ref().map(|bias| bias.to_dtype(DType::F32)).transpose()?;
        Ok(Linear::new(self.dense_weight()?, bias))
    }

    /// The weight, `[out, in]`.
    pub fn weight(&self) -> &Arc<QTensor> {
        &self.weight
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for QuantizedLinear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.forward_base(x)
    }
}

impl BaseLayer for QuantizedLinear {
    const KIND: LayerKind = LayerKind::new("QuantizedLinear", Family::Linear);

    fn geometry(&self) -> Geometry {
        match *self.weight.shape().dims() {
            [out_features, in_features] => Geometry::Linear { in_features, out_features, transposed: false },
            _ => Geometry::Opaque,
        }
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        self.bias.iter().map(|bias| ("bias", bias)).collect()
    }

    fn map_parameters(&self, map: &mut ParameterMap<'_>) -> Result<Self> {
        let bias = self.bias.as_ref().map(|bias| map("bias", bias)).transpose()?;
        Ok(Self { weight: Arc::clone(&self.weight), bias })
    }

    fn forward_base(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        quantized_linear(x, &self.weight, self.bias.as_ref())
    }

    fn forward_low_rank(&self, x: &Tensor, terms: &LowRank) -> Option<candle_core::Result<Tensor>> {
        let (weight, bias) = (&self.weight, self.bias.as_ref());
        can_fuse_quantized(x, weight, bias, terms).then(|| quantized_linear_low_rank(x, weight, bias, terms))
    }

    fn forward_sum(
        &self,
        input: LayerInput<'_>,
        terms: Option<&LowRank>,
        residual: &Tensor,
    ) -> Option<candle_core::Result<Tensor>> {
        quantized_linear_add(input, &self.weight, self.bias.as_ref(), terms, residual).transpose()
    }

    fn dtype_and_device(&self) -> (DType, Device) {
        (DType::F32, self.weight.device())
    }

    fn dense_weight(&self) -> candle_core::Result<Tensor> {
        self.weight.dequantize(&self.weight.device())
    }

    fn quantized_weight(&self) -> Option<&Arc<QTensor>> {
        Some(&self.weight)
    }

    fn with_quantized_weight(&self, weight: Arc<QTensor>) -> Option<candle_core::Result<Self>> {
        Some(Self::new(weight, self.bias.clone()))
    }

    fn describe(&self) -> String {
        let geometry = self.geometry();
        let dtype = format!("{:?}", self.weight.dtype()).to_lowercase();
        format!(
            "QuantizedLinear(in_features={}, out_features={}, bias={}, dtype={dtype})",
            geometry.in_features(),
            geometry.out_features(),
            python_bool(self.bias.is_some())
        )
    }
}
