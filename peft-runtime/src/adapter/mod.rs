//! The adapter methods: one state type each, and the one interface through which layers know them.

mod adalora;
mod combine;
mod geometry;
mod ia3;
mod init;
mod keys;
mod lora;
mod method;
mod shapes;
mod source;
mod tokens;

use std::fmt::Debug;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use crate::ModulePath;
use crate::error::Result;
use crate::ops::random::DropoutStream;
use crate::schema::LayerKind;

pub use crate::ops::conv::ConvSettings;
pub use crate::ops::low_rank::LowRank;
pub use adalora::AdaLora;
pub use combine::{Combination, Combined, CombinedLayer, Part};
pub use geometry::Geometry;
pub(crate) use geometry::without_padding_gradient;
pub use ia3::Ia3;
pub use init::Init;
pub use lora::Lora;
pub(crate) use lora::{PlainFactors, size_at, tuple};
pub use method::{AdapterMethod, Built, Selection};
pub(crate) use shapes::{LayerShapes, split_layer_key};
pub use source::TensorSource;
pub(crate) use source::{FreshTensors, StoredTensor, StoredTensors};
pub use tokens::TrainableTokens;

/// The state of one adapter on one layer; [`AdapterMethod`] shows one of your own.
///
/// A layer knows nothing else of an adapter: what it does to the output, what it does to the weight, and which tensors
/// it owns. The state is shared and does not change, but for the contents of its variables.
pub trait Adapter: Debug + Send + Sync {
    /// The adapter's tensors, in the order of its file keys.
    fn tensors(&self) -> Vec<AdapterTensor<'_>>;

    /// The output with the adapter's part: `output` is that of the layer with the adapters before this one.
    ///
    /// # Errors
    /// If the shapes of the input do not fit.
    fn adapt_output(&self, call: &Call<'_>, input: &Tensor, output: Tensor) -> candle_core::Result<Tensor>;

    /// The input that the layer and the adapters before this one see, if this adapter changes it.
    ///
    /// # Errors
    /// If the shapes of the input do not fit.
    fn adapt_input(&self, call: &Call<'_>, input: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let _ = (call, input);
        Ok(None)
    }

    /// The factors, if all the adapter does in this call is to add a low-rank product of the input: the layer can
    /// then compute both in one pass.
    ///
    /// # Errors
    /// If the factors cannot be put together.
    fn low_rank(&self, call: &Call<'_>) -> candle_core::Result<Option<LowRank>> {
        let _ = call;
        Ok(None)
    }

    /// What the adapter adds to a bare weight, in its shape, as part of the graph; `None` if it adds nothing.
    ///
    /// # Errors
    /// If the factors do not multiply.
    fn weight_delta(&self, call: &Call<'_>) -> candle_core::Result<Option<Tensor>> {
        let _ = call;
        Ok(None)
    }

    /// The parameters of a layer that computes what `parameters` and this adapter compute together.
    ///
    /// `parameters` already hold the adapters merged before this one; `site` has the layer's own.
    ///
    /// # Errors
    /// If there are no such parameters, or a tensor computation fails.
    fn merge(
        &self,
        site: &Site<'_>,
        parameters: LinearParameters,
    ) -> std::result::Result<LinearParameters, MergeError>;

    /// The layer's weight as it was before the adapter took something out of it, if it did.
    ///
    /// # Errors
    /// If the device refuses.
    fn restored_weight(&self, weight: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let _ = weight;
        Ok(None)
    }

    /// Whether making the adapter changed the layer's weight.
    fn changed_base(&self) -> bool {
        false
    }

    /// Whether rows of one batch may have this adapter beside rows with others.
    fn mixes_in_a_batch(&self) -> bool {
        true
    }

    /// The adapter as LoRA's, if that is what it is.
    fn as_lora(&self) -> Option<&Lora> {
        None
    }

    /// The adapter as AdaLoRA's, if that is what it is.
    fn as_adalora(&self) -> Option<&AdaLora> {
        None
    }

    /// The adapter as IA3's, if that is what it is.
    fn as_ia3(&self) -> Option<&Ia3> {
        None
    }

    /// The adapter as trainable tokens, if that is what it is.
    fn as_trainable_tokens(&self) -> Option<&TrainableTokens> {
        None
    }

    /// The values of a tensor as files have them.
    ///
    /// # Errors
    /// If the device refuses.
    fn stored_tensor(&self, tensor: &AdapterTensor<'_>) -> candle_core::Result<Tensor> {
        Ok(tensor.var.as_detached_tensor())
    }

    /// The values of a tensor from those that files have, where the two differ in shape; `None` if they do not fit.
    ///
    /// # Errors
    /// If the device refuses.
    fn unstored_tensor(
        &self,
        tensor: &AdapterTensor<'_>,
        stored: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let _ = (tensor, stored);
        Ok(None)
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

/// A weight and a bias, which is all that merging changes.
#[derive(Clone, Debug)]
pub struct LinearParameters {
    /// The weight in the shape the layer stores.
    pub weight: Tensor,
    /// The bias, if the layer has one.
    pub bias: Option<Tensor>,
}

/// Why an adapter could not be merged into a layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// No weight and bias of the layer compute the same.
    #[error("{0}")]
    Impossible(String),
    /// A tensor computation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

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
    /// Its weight, made dense when it is asked for.
    pub(crate) weight: &'a dyn Fn() -> candle_core::Result<Tensor>,
}

impl Site<'_> {
    /// The layer's own weight, dense, outside of any graph.
    ///
    /// # Errors
    /// If a compressed weight cannot be made dense.
    pub fn weight(&self) -> Result<Tensor> {
        (self.weight)().map_err(crate::Error::on_layer(self.path))
    }

    /// The same with candle's own error.
    pub(crate) fn dense_weight(&self) -> candle_core::Result<Tensor> {
        (self.weight)()
    }

    /// The dtype of adapter tensors on this layer: its own, but f32 instead of half precision, as in PEFT.
    pub fn adapter_dtype(&self) -> DType {
        match self.dtype {
            DType::F64 => DType::F64,
            _ => DType::F32,
        }
    }
}

/// One forward pass through one layer.
pub struct Call<'a> {
    /// The layer's shape.
    pub geometry: &'a Geometry,
    /// The layer's bias.
    pub bias: Option<&'a Tensor>,
    /// The layer's weight, made dense when it is asked for.
    pub(crate) weight: &'a dyn Fn() -> candle_core::Result<Tensor>,
    pub(crate) base: &'a dyn Fn(&Tensor) -> candle_core::Result<Tensor>,
    /// Whether dropout acts.
    pub training: bool,
    /// Whether the adapter's tensors are part of the graph.
    pub(crate) tracks: bool,
    pub(crate) dropout: &'a DropoutStream,
}

impl Call<'_> {
    /// The variable as part of the graph, or its value alone where the adapter does not train.
    pub fn tensor(&self, var: &Var) -> Tensor {
        if self.tracks { var.as_tensor().clone() } else { var.as_detached_tensor() }
    }

    /// The input with elements dropped at random, in training mode.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn dropout(&self, x: &Tensor, probability: f64) -> candle_core::Result<Tensor> {
        if self.training && probability > 0.0 { self.dropout.apply(x, probability) } else { Ok(x.clone()) }
    }

    /// The layer's own weight, dense, outside of any graph.
    ///
    /// # Errors
    /// If a compressed weight cannot be made dense.
    pub fn weight(&self) -> candle_core::Result<Tensor> {
        (self.weight)()
    }

    /// What the layer computes without adapters.
    ///
    /// # Errors
    /// If the input does not fit.
    pub fn base_output(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        (self.base)(x)
    }
}

/// One container of PEFT's module tree, such as `lora_A`, with what one adapter has in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// The container's name.
    pub name: &'static str,
    /// What it holds.
    pub holds: Holds,
    /// What the adapter has in it.
    pub entry: Option<String>,
}

impl Component {
    /// A container of modules.
    pub fn modules(name: &'static str, entry: Option<String>) -> Self {
        Self { name, holds: Holds::Modules, entry }
    }

    /// A container of bare tensors.
    pub fn tensors(name: &'static str, entry: Option<&Tensor>) -> Self {
        Self {
            name,
            holds: Holds::Parameters,
            entry: entry.map(|tensor| describe_tensor("Parameter", tensor)),
        }
    }

    /// A container of tensors that do not train.
    pub(crate) fn buffers(name: &'static str, entry: &Tensor) -> Self {
        Self { name, holds: Holds::Buffers, entry: Some(describe_tensor("Buffer", entry)) }
    }
}

/// What a container of PEFT's module tree holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holds {
    /// Modules: a `ModuleDict`.
    Modules,
    /// Tensors that train: a `ParameterDict`.
    Parameters,
    /// Tensors that do not: a `BufferDict`.
    Buffers,
}

/// A tensor as PyTorch prints it in a container.
fn describe_tensor(what: &str, tensor: &Tensor) -> String {
    let dims: Vec<String> = tensor.dims().iter().map(ToString::to_string).collect();
    let kind = match tensor.dtype() {
        DType::F64 => "Double",
        DType::F16 => "Half",
        DType::BF16 => "BFloat16",
        _ => "Float",
    };
    format!("{what} containing: [torch.{kind}Tensor of size {}]", dims.join("x"))
}
