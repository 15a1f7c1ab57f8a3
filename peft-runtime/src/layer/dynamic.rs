//! `Layer`: a layer of any type, as everything that works on whole models knows it.

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Result as CandleResult, Tensor};

use super::{AdapterStack, BaseLayer, Dropout, ParameterMap};
use crate::adapter::Geometry;
use crate::error::Result;
use crate::schema::LayerKind;

/// A layer or parameter of a model, as a walk over the model finds it.
///
/// [`Adapted`](super::Adapted) layers can carry adapters. All others are shown, saved with the base model and frozen;
/// the methods about adapters have defaults for them. A layer kind of your own implements [`BaseLayer`], which makes it
/// a `Layer`.
pub trait Layer: Sync {
    /// The name of its type, and the kind of computation it does.
    fn kind(&self) -> LayerKind;

    /// The layer as PyTorch prints it; `None` for a bare parameter, which PyTorch does not print.
    fn describe(&self) -> Option<String>;

    /// Its own parameters by name, whatever is merged; a bare parameter has an empty name.
    fn parameters(&self) -> Vec<(&'static str, &Tensor)>;

    /// Gives its own parameters new values.
    ///
    /// # Errors
    /// If `map` fails; the layer is then unchanged.
    fn map_parameters(&mut self, map: &mut ParameterMap<'_>) -> Result<()>;

    /// Its own weight, if it is quantized and therefore not among the parameters.
    fn quantized_weight(&self) -> Option<&Arc<QTensor>> {
        None
    }

    /// Gives it another quantized weight, with which whatever is merged acts.
    ///
    /// # Errors
    /// If its weight is not quantized, or the new one does not fit.
    fn set_quantized_weight(&mut self, weight: Arc<QTensor>) -> CandleResult<()> {
        let _ = weight;
        candle_core::bail!("the weight of a {} is not quantized", self.kind())
    }

    /// Whether it could carry adapters if its field were declared as `Adapted`.
    fn can_be_adapted(&self) -> bool {
        false
    }

    /// The layer as the model's own dropout, if that is what it is.
    fn dropout(&self) -> Option<&Dropout> {
        None
    }

    /// The layer as the model's own dropout, for changing it, if that is what it is.
    fn dropout_mut(&mut self) -> Option<&mut Dropout> {
        None
    }

    /// Whether it can carry adapters.
    fn can_carry_adapters(&self) -> bool {
        false
    }

    /// Its shape, as adapters see it.
    fn geometry(&self) -> Geometry {
        Geometry::Opaque
    }

    /// The name of the parameter that adapters are merged into.
    fn weight_name(&self) -> &'static str {
        "weight"
    }

    /// The parameters in use: those with adapters merged in, if any are merged.
    fn effective_parameters(&self) -> Vec<(&'static str, &Tensor)> {
        self.parameters()
    }

    /// The dtype of its weight and where it is.
    fn dtype_and_device(&self) -> (DType, Device) {
        dtype_and_device(&self.parameters())
    }

    /// Its own weight, dense, outside of any graph.
    ///
    /// # Errors
    /// If a compressed weight cannot be made dense, or there is none.
    fn dense_weight(&self) -> CandleResult<Tensor> {
        dense_weight(self.kind(), self.weight_name(), self.parameters())
    }

    /// Its adapters, if it has ever had one.
    fn stack(&self) -> Option<&AdapterStack> {
        None
    }

    /// Its adapters, for changing them, if it has ever had one.
    fn stack_mut(&mut self) -> Option<&mut AdapterStack> {
        None
    }

    /// Gives it a place for adapters, if it can carry any; an existing one stays.
    fn ensure_stack(&mut self, stack: AdapterStack) {
        let _ = stack;
    }

    /// Removes all adapters; with `keep_merged`, it keeps what is merged.
    fn drop_stack(&mut self, keep_merged: bool) {
        let _ = keep_merged;
    }

    /// Sets the parameters to use instead of its own, or, with `None`, goes back to its own. Without a place for
    /// adapters, nothing changes.
    ///
    /// # Errors
    /// If `map` fails; the layer is then unchanged.
    fn set_merged(&mut self, map: Option<&mut ParameterMap<'_>>) -> Result<()> {
        let _ = map;
        Ok(())
    }

    /// Lets its own parameters act again, with their original bits.
    ///
    /// # Errors
    /// As [`set_merged`](Self::set_merged).
    fn unmerge(&mut self) -> Result<()> {
        self.set_merged(None)?;
        if let Some(stack) = self.stack_mut() {
            stack.set_merged(Vec::new());
        }
        Ok(())
    }
}

/// A layer that could carry adapters, but is not declared as `Adapted`.
impl<L: BaseLayer> Layer for L {
    fn kind(&self) -> LayerKind {
        L::KIND
    }

    fn describe(&self) -> Option<String> {
        Some(BaseLayer::describe(self))
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        BaseLayer::parameters(self)
    }

    fn map_parameters(&mut self, map: &mut ParameterMap<'_>) -> Result<()> {
        *self = BaseLayer::map_parameters(self, map)?;
        Ok(())
    }

    fn quantized_weight(&self) -> Option<&Arc<QTensor>> {
        BaseLayer::quantized_weight(self)
    }

    fn can_be_adapted(&self) -> bool {
        true
    }

    fn geometry(&self) -> Geometry {
        BaseLayer::geometry(self)
    }

    fn weight_name(&self) -> &'static str {
        L::WEIGHT
    }

    fn dtype_and_device(&self) -> (DType, Device) {
        BaseLayer::dtype_and_device(self)
    }

    fn dense_weight(&self) -> CandleResult<Tensor> {
        BaseLayer::dense_weight(self)
    }
}

/// The dtype and device of the first parameter.
pub(super) fn dtype_and_device(parameters: &[(&'static str, &Tensor)]) -> (DType, Device) {
    match parameters.first() {
        Some((_, first)) => (first.dtype(), first.device().clone()),
        None => (DType::F32, Device::Cpu),
    }
}

/// The parameter called `name`, outside of any graph.
pub(super) fn dense_weight(
    kind: LayerKind,
    name: &str,
    parameters: Vec<(&'static str, &Tensor)>,
) -> CandleResult<Tensor> {
    match parameters.into_iter().find(|(parameter, _)| *parameter == name) {
        Some((_, weight)) => Ok(weight.detach()),
        None => candle_core::bail!("a {kind} has no weight"),
    }
}
