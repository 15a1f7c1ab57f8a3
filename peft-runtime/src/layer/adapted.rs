//! `Adapted<L>`: a layer as it was, or with adapters keyed by name.

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor};
use candle_nn::Module;

use super::forward::{forward, plain};
use super::{AdapterStack, BaseLayer, Layer, LayerInput, ParameterMap};
use crate::adapter::Geometry;
use crate::error::Result;
use crate::schema::LayerKind;

/// A layer that can carry adapters.
///
/// Without adapters, it costs as much as the layer itself, except that its backward pass never computes the gradient of
/// a frozen weight.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Linear, Module};
/// use peft_runtime::Adapted;
///
/// let linear = Linear::new(Tensor::zeros((4, 2), DType::F32, &Device::Cpu)?, None);
/// let adapted = Adapted::from(linear);
/// let y = adapted.forward(&Tensor::ones((3, 2), DType::F32, &Device::Cpu)?)?;
/// assert_eq!(y.dims(), [3, 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub enum Adapted<L> {
    /// The layer as it was.
    Base(L),
    /// The layer with adapters.
    Stacked(Box<Stacked<L>>),
}

/// A layer with adapters.
#[derive(Clone, Debug)]
pub struct Stacked<L> {
    pub(super) base: L,
    /// The layer with adapters merged into its parameters, while any are merged.
    pub(super) merged: Option<L>,
    pub(super) stack: AdapterStack,
}

impl<L> Adapted<L> {
    /// `layer` without adapters.
    pub fn new(layer: L) -> Self {
        Self::Base(layer)
    }

    /// The layer itself, with its own parameters, whatever is merged.
    pub fn base(&self) -> &L {
        match self {
            Self::Base(layer) => layer,
            Self::Stacked(stacked) => &stacked.base,
        }
    }

    /// The layer itself, without its adapters.
    pub fn into_base(self) -> L {
        match self {
            Self::Base(layer) => layer,
            Self::Stacked(stacked) => stacked.base,
        }
    }

    fn base_mut(&mut self) -> &mut L {
        match self {
            Self::Base(layer) => layer,
            Self::Stacked(stacked) => &mut stacked.base,
        }
    }
}

impl<L> From<L> for Adapted<L> {
    fn from(layer: L) -> Self {
        Self::Base(layer)
    }
}

impl<L: BaseLayer> Adapted<L> {
    /// `residual` plus the layer's output: a residual connection.
    ///
    /// It computes the same as adding the two. If the layer is linear and frozen, in f32 or f64 on the CPU, and has no
    /// adapter or one that adds a low-rank product, it takes one pass, and training does not keep the layer's output in
    /// addition to the sum.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::{Linear, Module};
    /// use peft_runtime::Adapted;
    ///
    /// let linear = Adapted::from(Linear::new(Tensor::ones((2, 3), DType::F32, &Device::Cpu)?, None));
    /// let x = Tensor::ones((1, 3), DType::F32, &Device::Cpu)?;
    /// let residual = Tensor::new(&[[10f32, 20.]], &Device::Cpu)?;
    /// assert_eq!(linear.forward_add(&x, &residual)?.to_vec2::<f32>()?, [[13., 23.]]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the input's shape does not fit, or the residual does not have the output's shape.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> candle_core::Result<Tensor> {
        self.run(LayerInput::Tensor(x), Some(residual))
    }

    /// `residual` plus the layer's output for `silu(gate) ∘ up`: the end of a gated feed-forward layer and the residual
    /// connection around it.
    ///
    /// It computes the same as [`swiglu`](crate::nn::swiglu) followed by [`forward_add`](Self::forward_add). Where
    /// `forward_add` takes one pass, so does this, and training does not keep the product: the backward pass computes
    /// it again.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::Linear;
    /// use peft_runtime::{Adapted, nn};
    ///
    /// let down = Adapted::from(Linear::new(Tensor::ones((2, 3), DType::F32, &Device::Cpu)?, None));
    /// let (gate, up) = (Tensor::new(&[[1f32, -1., 2.]], &Device::Cpu)?, Tensor::new(&[[3f32, 4., 5.]], &Device::Cpu)?);
    /// let residual = Tensor::new(&[[10f32, 20.]], &Device::Cpu)?;
    /// let y = down.forward_swiglu_add(&gate, &up, &residual)?;
    /// let same = down.forward_add(&nn::swiglu(&gate, &up)?, &residual)?;
    /// assert_eq!(y.to_vec2::<f32>()?, same.to_vec2::<f32>()?);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the shapes of gate and up differ, they do not fit the layer, or the residual does not have the output's shape.
    pub fn forward_swiglu_add(
        &self,
        gate: &Tensor,
        up: &Tensor,
        residual: &Tensor,
    ) -> candle_core::Result<Tensor> {
        self.run(LayerInput::Swiglu { gate, up }, Some(residual))
    }

    fn run(&self, input: LayerInput<'_>, residual: Option<&Tensor>) -> candle_core::Result<Tensor> {
        match self {
            Self::Base(layer) => plain(layer, input, residual),
            Self::Stacked(stacked) => {
                let Stacked { base, merged, stack } = &**stacked;
                forward(base, merged.as_ref(), stack, input, residual).map_err(|error| stack.on_layer(error))
            }
        }
    }
}

impl<L: BaseLayer> Module for Adapted<L> {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.run(LayerInput::Tensor(x), None)
    }
}

impl<L: BaseLayer> Layer for Adapted<L> {
    fn kind(&self) -> LayerKind {
        L::KIND
    }

    fn describe(&self) -> Option<String> {
        Some(BaseLayer::describe(self.base()))
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        BaseLayer::parameters(self.base())
    }

    fn map_parameters(&mut self, map: &mut ParameterMap<'_>) -> Result<()> {
        let layer = BaseLayer::map_parameters(self.base(), map)?;
        *self.base_mut() = layer;
        Ok(())
    }

    fn quantized_weight(&self) -> Option<&Arc<QTensor>> {
        BaseLayer::quantized_weight(self.base())
    }

    fn set_quantized_weight(&mut self, weight: Arc<QTensor>) -> candle_core::Result<()> {
        let acting = match self {
            Self::Base(layer) => layer,
            Self::Stacked(stacked) => stacked.merged.as_mut().unwrap_or(&mut stacked.base),
        };
        match BaseLayer::with_quantized_weight(&*acting, weight) {
            Some(layer) => *acting = layer?,
            None => candle_core::bail!("the weight of a {} is not quantized", L::KIND),
        }
        Ok(())
    }

    fn can_carry_adapters(&self) -> bool {
        true
    }

    fn geometry(&self) -> Geometry {
        match self {
            Self::Base(layer) => BaseLayer::geometry(layer),
            Self::Stacked(stacked) => stacked.stack.geometry().clone(),
        }
    }

    fn weight_name(&self) -> &'static str {
        L::WEIGHT
    }

    fn effective_parameters(&self) -> Vec<(&'static str, &Tensor)> {
        BaseLayer::parameters(match self {
            Self::Base(layer) => layer,
            Self::Stacked(stacked) => stacked.merged.as_ref().unwrap_or(&stacked.base),
        })
    }

    fn dtype_and_device(&self) -> (DType, Device) {
        BaseLayer::dtype_and_device(self.base())
    }

    fn dense_weight(&self) -> candle_core::Result<Tensor> {
        BaseLayer::dense_weight(self.base())
    }

    fn stack(&self) -> Option<&AdapterStack> {
        match self {
            Self::Base(_) => None,
            Self::Stacked(stacked) => Some(&stacked.stack),
        }
    }

    fn stack_mut(&mut self) -> Option<&mut AdapterStack> {
        match self {
            Self::Base(_) => None,
            Self::Stacked(stacked) => Some(&mut stacked.stack),
        }
    }

    fn ensure_stack(&mut self, stack: AdapterStack) {
        if let Self::Base(layer) = self {
            *self = Self::Stacked(Box::new(Stacked { base: layer.clone(), merged: None, stack }));
        }
    }

    fn drop_stack(&mut self, keep_merged: bool) {
        if let Self::Stacked(stacked) = self {
            let merged = if keep_merged { stacked.merged.take() } else { None };
            *self = Self::Base(merged.unwrap_or_else(|| stacked.base.clone()));
        }
    }

    fn set_merged(&mut self, map: Option<&mut ParameterMap<'_>>) -> Result<()> {
        if let Self::Stacked(stacked) = self {
            stacked.merged = map.map(|map| BaseLayer::map_parameters(&stacked.base, map)).transpose()?;
        }
        Ok(())
    }
}
