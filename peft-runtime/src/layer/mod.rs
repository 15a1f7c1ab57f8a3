//! Base layers that can carry adapters, and [`Adapted`], which carries them.

mod adapted;
mod any_linear;
mod calls;
mod conv;
mod dropout;
mod dynamic;
mod embedding;
mod forward;
mod linear;
mod norm;
mod parameters;
mod plain;
mod quantized;
mod scope;
mod stack;
mod transposed;
mod weight;

use std::fmt::Debug;
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor};

use crate::adapter::{Geometry, LowRank};
use crate::error::Result;
use crate::schema::LayerKind;

pub use crate::ops::linear::input::LayerInput;
pub use adapted::Adapted;
pub use any_linear::AnyLinear;
pub(crate) use calls::Called;
pub use dropout::Dropout;
pub use dynamic::Layer;
pub use embedding::PaddedEmbedding;
pub use quantized::QuantizedLinear;
pub use scope::no_grad;
pub(crate) use scope::{BASE_ROW, Scope, record_inputs, with_rows};
pub(crate) use stack::StackState;
pub use stack::{AdapterStack, Content, CopiedParameter, Slot};
pub use transposed::TransposedLinear;
pub use weight::Weight;

/// A layer type that `Adapted` can wrap.
///
/// Implementing it for a layer of your own makes every adapter method work on it. What the methods need is its
/// [`Geometry`]; what saving and freezing need is the list of its parameters.
///
/// A linear layer that counts its calls:
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicUsize, Ordering};
///
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::Module;
/// use peft_runtime::adapter::Geometry;
/// use peft_runtime::layer::{BaseLayer, ParameterMap};
/// use peft_runtime::nn::linear_forward;
/// use peft_runtime::prelude::*;
/// use peft_runtime::schema::{Family, LayerKind};
///
/// #[derive(Clone, Debug)]
/// struct Counted {
///     weight: Tensor,
///     calls: Arc<AtomicUsize>,
/// }
///
/// impl BaseLayer for Counted {
///     const KIND: LayerKind = LayerKind::new("Counted", Family::Linear);
///
///     fn geometry(&self) -> Geometry {
///         match *self.weight.dims() {
///             [out_features, in_features] => Geometry::Linear { in_features, out_features, transposed: false },
///             _ => Geometry::Opaque,
///         }
///     }
///
///     fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
///         vec![("weight", &self.weight)]
///     }
///
///     fn map_parameters(&self, map: &mut ParameterMap<'_>) -> peft_runtime::Result<Self> {
///         Ok(Self { weight: map("weight", &self.weight)?, calls: Arc::clone(&self.calls) })
///     }
///
///     fn forward_base(&self, x: &Tensor) -> candle_core::Result<Tensor> {
///         self.calls.fetch_add(1, Ordering::Relaxed);
///         linear_forward(x, &self.weight, None)
///     }
///
///     fn describe(&self) -> String {
///         "Counted()".to_owned()
///     }
/// }
///
/// #[derive(Injectable)]
/// struct Model {
///     layer: Adapted<Counted>,
/// }
///
/// let calls = Arc::new(AtomicUsize::new(0));
/// let weight = Tensor::ones((4, 3), DType::F32, &Device::Cpu)?;
/// let mut model = Model { layer: Counted { weight, calls: Arc::clone(&calls) }.into() };
/// model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(targets!(Model; "layer")), "default")?;
/// let y = model.layer.forward(&Tensor::ones((1, 3), DType::F32, &Device::Cpu)?)?;
/// assert_eq!((y.to_vec2::<f32>()?, calls.load(Ordering::Relaxed)), (vec![vec![3f32; 4]], 1));
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub trait BaseLayer: Clone + Debug + Send + Sync + 'static {
    /// The layer's name and family.
    const KIND: LayerKind;

    /// The name of the parameter that adapters are merged into.
    const WEIGHT: &'static str = "weight";

    /// The layer's shape, as adapters see it.
    fn geometry(&self) -> Geometry;

    /// The layer's parameters by their names in a state dict, in PyTorch's order: `weight`, then `bias`.
    fn parameters(&self) -> Vec<(&'static str, &Tensor)>;

    /// The same layer with other parameters; `map` gives the new value of each.
    ///
    /// # Errors
    /// If `map` fails.
    fn map_parameters(&self, map: &mut ParameterMap<'_>) -> Result<Self>;

    /// The layer's output, without a gradient for parameters that are not variables.
    ///
    /// # Errors
    /// If the input's shape does not fit.
    fn forward_base(&self, x: &Tensor) -> candle_core::Result<Tensor>;

    /// The layer's output plus a low-rank product of the same input in one pass, if the layer can do that.
    fn forward_low_rank(&self, x: &Tensor, terms: &LowRank) -> Option<candle_core::Result<Tensor>> {
        let _ = (x, terms);
        None
    }

    /// `residual` plus the layer's output, and plus a low-rank product of the same input if there is one, in one pass
    /// if the layer can do that. [`LayerInput::tensor`] is the input as [`forward_base`](Self::forward_base) gets it.
    fn forward_sum(
        &self,
        input: LayerInput<'_>,
        terms: Option<&LowRank>,
        residual: &Tensor,
    ) -> Option<candle_core::Result<Tensor>> {
        let _ = (input, terms, residual);
        None
    }

    /// The dtype of the weight and where it is; by default those of the first parameter.
    fn dtype_and_device(&self) -> (DType, Device) {
        dynamic::dtype_and_device(&self.parameters())
    }

    /// The weight as a dense tensor outside of any graph; by default the parameter called [`WEIGHT`](Self::WEIGHT).
    ///
    /// # Errors
    /// If a compressed weight cannot be made dense, or there is none.
    fn dense_weight(&self) -> candle_core::Result<Tensor> {
        dynamic::dense_weight(Self::KIND, Self::WEIGHT, self.parameters())
    }

    /// The weight, if it is quantized and therefore not one of the parameters.
    fn quantized_weight(&self) -> Option<&Arc<QTensor>> {
        None
    }

    /// The same layer with another quantized weight of the same shape, if its weight is quantized.
    ///
    /// # Errors
    /// If the weight does not fit.
    fn with_quantized_weight(&self, weight: Arc<QTensor>) -> Option<candle_core::Result<Self>> {
        let _ = weight;
        None
    }

    /// The layer as PyTorch prints it.
    fn describe(&self) -> String;
}

/// Maps a parameter's name and value to a new value.
pub type ParameterMap<'a> = dyn FnMut(&'static str, &Tensor) -> Result<Tensor> + 'a;

/// Python's spelling of a Boolean, for descriptions.
pub(crate) fn python_bool(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

/// Python's spelling of a number that is not large, for descriptions: `1e-05`, `0.001`, `0.0`.
pub(crate) fn python_float(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-4 {
        let text = format!("{value:e}");
        if let Some((mantissa, exponent)) = text.split_once("e-") {
            return format!("{mantissa}e-{exponent:0>2}");
        }
    }
    format!("{value:?}")
}

/// Sizes as Python prints a tuple.
pub(crate) fn python_tuple(sizes: &[usize]) -> String {
    match sizes {
        [one] => format!("({one},)"),
        many => {
            let many: Vec<String> = many.iter().map(ToString::to_string).collect();
            format!("({})", many.join(", "))
        }
    }
}
