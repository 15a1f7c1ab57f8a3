//! Where a model's layers come from: tensors of a builder, or a GGUF file.

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Result, Tensor};
use candle_nn::{Embedding, Init, Linear, RmsNorm, VarBuilder};

use crate::layer::{Adapted, AnyLinear, QuantizedLinear};

/// Builds layers from weights, by their names in transformers.
pub(super) trait Weights {
    /// A dense tensor of this shape.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor>;

    /// The linear layer `name` with a weight of shape `[out, in]`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    fn linear(
        &mut self,
        name: &str,
        in_features: usize,
        out_features: usize,
        bias: bool,
    ) -> Result<Adapted<AnyLinear>> {
        let weight = self.tensor(&format!("{name}.weight"), &[out_features, in_features])?;
        let bias = self.bias(name, out_features, bias)?;
        Ok(Adapted::new(AnyLinear::from(Linear::new(weight, bias))))
    }

    /// The bias of the layer `name`, if it has one.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    fn bias(&mut self, name: &str, out_features: usize, bias: bool) -> Result<Option<Tensor>> {
        bias.then(|| self.tensor(&format!("{name}.bias"), &[out_features])).transpose()
    }

    /// The embedding `name` with a table of shape `[rows, size]`.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    fn embedding(&mut self, name: &str, rows: usize, size: usize) -> Result<Adapted<Embedding>> {
        let table = self.tensor(&format!("{name}.weight"), &[rows, size])?;
        Ok(Adapted::new(Embedding::new(table, size)))
    }

    /// The RMS norm `name` with a weight of shape `[size]`.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    fn rms_norm(&mut self, name: &str, size: usize, eps: f64) -> Result<Adapted<RmsNorm>> {
        let weight = self.tensor(&format!("{name}.weight"), &[size])?;
        Ok(Adapted::new(RmsNorm::new(weight, eps)))
    }
}

impl Weights for VarBuilder<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.get(shape, name)
    }
}

/// A builder's weights; those of linear layers are quantized as they are read: no two of them are dense at once.
pub(super) struct Quantizing<'a> {
    pub(super) vb: VarBuilder<'a>,
    pub(super) dtype: GgmlDType,
}

impl Weights for Quantizing<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.vb.get(shape, name)
    }

    fn linear(
        &mut self,
        name: &str,
        in_features: usize,
        out_features: usize,
        bias: bool,
    ) -> Result<Adapted<AnyLinear>> {
        // Quantized from what the file has, and not from what is rounded to the precision of the dense tensors.
        let (shape, name_of_weight) = ((out_features, in_features), format!("{name}.weight"));
        let weight = self.vb.get_with_hints_dtype(shape, &name_of_weight, Init::default(), DType::F32)?;
        let dense = Linear::new(weight, self.bias(name, out_features, bias)?);
        Ok(Adapted::new(AnyLinear::from(QuantizedLinear::from_linear(&dense, self.dtype)?)))
    }
}
