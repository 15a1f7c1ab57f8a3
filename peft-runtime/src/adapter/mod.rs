//! What the rest of the library knows about adapter methods: the state of an adapter on a layer, and the settings it is
//! made from.
//!
//! The methods themselves are in [`method`](crate::method).

mod call;
mod component;
mod geometry;
mod init;
mod keys;
mod layer_settings;
mod layer_shapes;
mod linear_parameters;
mod method;
mod selection;
mod site;
mod source;

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use candle_core::{Tensor, Var};

pub use crate::ops::conv::ConvSettings;
pub use crate::ops::linear::low_rank::LowRank;
pub use call::Call;
pub(crate) use component::describe_dropout;
pub use component::{Component, Holds};
pub use geometry::Geometry;
pub(crate) use geometry::without_padding_gradient;
pub use init::Init;
pub use keys::KeyedShapes;
pub use layer_settings::{Built, LayerSettings};
pub use layer_shapes::LayerShapes;
pub(crate) use layer_shapes::{convolution_of, linear_of};
pub use linear_parameters::LinearParameters;
pub use method::{
    AdapterMethod, Combination, CombinationPart, Combined, CombinedLayer, PlainLora, Shared, TiedMethod,
};
pub use selection::Selection;
pub use site::Site;
pub use source::TensorSource;
pub(crate) use source::{FreshTensors, StoredTensor, StoredTensors};

/// The state of one adapter on one layer; [`Method`](crate::method::Method) shows how to write your own.
///
/// A layer knows only this about an adapter: what it does to the output, what it does to the weight, and which tensors it
/// owns. The state is shared and does not change, except for the contents of its variables.
pub trait Adapter: Any + Debug + Send + Sync {
    /// The adapter's tensors, in the order of its file keys.
    fn tensors(&self) -> Vec<AdapterTensor<'_>>;

    /// The output with the adapter's part applied: `output` is the output of the layer and the adapters before this
    /// one.
    ///
    /// # Errors
    /// If the input's shape does not fit.
    fn adapt_output(&self, call: &Call<'_>, input: &Tensor, output: Tensor) -> candle_core::Result<Tensor>;

    /// The input that the layer and the adapters before this one see, if this adapter changes it.
    ///
    /// # Errors
    /// If the input's shape does not fit.
    fn adapt_input(&self, call: &Call<'_>, input: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let _ = (call, input);
        Ok(None)
    }

    /// The factors, if in this call the adapter only adds a low-rank product of the input: the layer can then compute both
    /// in one pass.
    ///
    /// # Errors
    /// If the factors cannot be computed.
    fn low_rank(&self, call: &Call<'_>) -> candle_core::Result<Option<LowRank>> {
        let _ = call;
        Ok(None)
    }

    /// What the adapter adds to a bare weight, in the weight's shape, as part of the graph; `None` if it adds nothing.
    ///
    /// # Errors
    /// If the factors do not multiply.
    fn weight_delta(&self, call: &Call<'_>) -> candle_core::Result<Option<Tensor>> {
        let _ = call;
        Ok(None)
    }

    /// The parameters of a layer that computes what `parameters` and this adapter compute together.
    ///
    /// `parameters` already include the adapters merged before this one; `site` has the layer's own parameters.
    ///
    /// # Errors
    /// If there are no such parameters, or a tensor computation fails.
    fn merge(&self, site: &Site<'_>, parameters: LinearParameters) -> Result<LinearParameters, MergeError>;

    /// The layer's weight as it was before the adapter took something out of it, if it did.
    ///
    /// # Errors
    /// If a device operation fails.
    fn restored_weight(&self, weight: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let _ = weight;
        Ok(None)
    }

    /// Whether making the adapter changed the layer's weight.
    fn changed_base(&self) -> bool {
        false
    }

    /// The tensors, by the ends of their keys, of an adapter that computes the same on the base weight as it was before this
    /// adapter changed it; `None` if the method has no such form.
    ///
    /// # Errors
    /// If a device operation fails.
    fn for_original_base(&self) -> candle_core::Result<Option<Vec<(&'static str, Tensor)>>> {
        Ok(None)
    }

    /// Whether some rows of a batch may use this adapter while other rows use others.
    fn mixes_in_a_batch(&self) -> bool {
        true
    }

    /// Whether the adapter replaces the layer's values with its own, which only one active adapter can do.
    fn replaces_values(&self) -> bool {
        false
    }

    /// The adapter for a layer with this geometry whose weight is the same tensor as that of this adapter's layer;
    /// `None` if the two need not share anything.
    fn tied_to(&self, geometry: Geometry) -> Option<Arc<dyn Adapter>> {
        let _ = geometry;
        None
    }

    /// The values of a tensor as files store them.
    ///
    /// # Errors
    /// If a device operation fails.
    fn stored_tensor(&self, tensor: &AdapterTensor<'_>) -> candle_core::Result<Tensor> {
        Ok(tensor.var.as_detached_tensor())
    }

    /// The values of a tensor from those that files store, where the two differ in shape; `None` if they do not fit.
    ///
    /// # Errors
    /// If a device operation fails.
    fn unstored_tensor(
        &self,
        tensor: &AdapterTensor<'_>,
        stored: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let _ = (tensor, stored);
        Ok(None)
    }

    /// The end of the key under which PEFT stores the base weight that is under the adapter.
    fn base_weight_key(&self) -> &'static str {
        "base_layer.weight"
    }

    /// The factor that scales the adapter's part, if it has one.
    fn scaling(&self) -> Option<f64> {
        None
    }

    /// The same adapter with another scaling, sharing its tensors; `None` if it has no scaling.
    fn with_scaling(&self, scaling: f64) -> Option<Arc<dyn Adapter>> {
        let _ = scaling;
        None
    }

    /// What reports call the adapter: `LoRA`.
    fn label(&self) -> &'static str;

    /// The rank, if there is one.
    fn rank(&self) -> Option<usize> {
        None
    }

    /// The factors of the update as matrices `[rank, in · kernel]` and `[out, rank]`, if the update is a low-rank matrix.
    ///
    /// # Errors
    /// If a device operation fails.
    fn low_rank_update(&self) -> candle_core::Result<Option<LowRank>> {
        Ok(None)
    }

    /// The update as a matrix `[out, in · kernel]`, for methods whose update is not a low-rank matrix.
    ///
    /// # Errors
    /// If a device operation fails.
    fn dense_update(&self) -> candle_core::Result<Option<Tensor>> {
        Ok(None)
    }

    /// The adapter's tensors as those of plain LoRA, if they have such a form.
    ///
    /// # Errors
    /// If a device operation fails.
    fn plain_factors(&self) -> candle_core::Result<Option<PlainFactors>> {
        Ok(None)
    }

    /// What the module tree shows of the adapter, in the order of PEFT's containers.
    fn components(&self) -> Vec<Component>;

    /// The word that PEFT's module tree puts before the layer's type, as in `lora.Linear`.
    fn tree_prefix(&self) -> Option<&'static str> {
        None
    }

    /// The type that PEFT's module tree shows instead of the layer's.
    fn tree_type(&self) -> Option<&'static str> {
        None
    }

    /// The module that PEFT's module tree shows around the adapted layer, and the layer's name in it.
    fn tree_wrapper(&self) -> Option<(&'static str, &'static str)> {
        None
    }
}

impl dyn Adapter {
    /// The adapter as `A`, if that is what it is.
    pub fn downcast_ref<A: Adapter>(&self) -> Option<&A> {
        let any: &dyn Any = self;
        any.downcast_ref()
    }
}

/// A tensor that an adapter owns.
#[derive(Clone, Copy, Debug)]
pub struct AdapterTensor<'a> {
    /// The last part of its key in a file: `lora_A.weight`.
    pub key: &'static str,
    /// The tensor.
    pub var: &'a Var,
    /// Whether it trains when the adapter does.
    pub trainable: bool,
    /// Whether it is written to files.
    pub stored: bool,
}

impl<'a> AdapterTensor<'a> {
    /// A tensor that trains and is stored.
    pub fn new(key: &'static str, var: &'a Var) -> Self {
        Self { key, var, trainable: true, stored: true }
    }
}

/// The tensors of an adapter on one layer as those of plain LoRA, each with the end of its key.
#[derive(Clone, Debug)]
pub struct PlainFactors {
    /// The factor A.
    pub a: (&'static str, Tensor),
    /// The factor B.
    pub b: (&'static str, Tensor),
    /// The bias of B.
    pub bias: Option<(&'static str, Tensor)>,
    /// The factor that scales their product.
    pub scaling: f64,
    /// Whether they are for a base weight that the adapter's init had changed.
    pub restores: bool,
}

/// Why an adapter could not be merged into a layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// No weight and bias of the layer compute the same result.
    #[error("{0}")]
    Impossible(String),
    /// A tensor computation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
