//! What a config has to tell so that its method can be injected.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use candle_core::Tensor;

use super::{Adapter, Combination, Combined, Geometry, Site, TensorSource};
use crate::ModulePath;
use crate::config::{AdaLoraConfig, Bias, CommonFields, Ia3Config, LoraConfig, PeftConfig, TokenIndices};
use crate::declared::Declared;
use crate::error::{Error, Fault, Result};
use crate::schema::LayerKind;
use crate::select::{LayerIndices, TargetModules};

/// An adapter method with its settings: chooses modules and makes the adapter of each.
///
/// The configs implement it; implementing it for a type of your own adds a method of your own, which everything knows from then
/// on: injecting, training, merging, rows of mixed batches, saving, and with
/// [`load_adapter_as`](crate::PeftModel::load_adapter_as) loading.
///
/// A method that multiplies the output of a layer by one number:
///
/// ```
/// use std::sync::Arc;
///
/// use candle_core::{DType, Device, Result as CandleResult, Tensor, Var};
/// use candle_nn::{Linear, Module};
/// use peft_runtime::adapter::{
///     Adapter, AdapterMethod, AdapterTensor, Built, Call, Component, Geometry, Init, LinearParameters, MergeError,
///     Selection, Site, TensorSource,
/// };
/// use peft_runtime::error::{Fault, Result};
/// use peft_runtime::prelude::*;
/// use peft_runtime::schema::LayerKind;
/// use peft_runtime::ModulePath;
///
/// /// The settings.
/// #[derive(Clone, Debug)]
/// struct Scaling {
///     targets: TargetModules,
/// }
///
/// /// What one layer gets.
/// #[derive(Debug)]
/// struct Factor(Var);
///
/// impl Adapter for Factor {
///     fn tensors(&self) -> Vec<AdapterTensor<'_>> {
///         vec![AdapterTensor::new("scaling_factor", &self.0)]
///     }
///
///     fn adapt_output(&self, call: &Call<'_>, _: &Tensor, output: Tensor) -> CandleResult<Tensor> {
///         output.broadcast_mul(&call.tensor(&self.0).to_dtype(output.dtype())?)
///     }
///
///     fn merge(&self, _: &Site<'_>, parameters: LinearParameters) -> Result<LinearParameters, MergeError> {
///         let scaled = |tensor: &Tensor| tensor.broadcast_mul(&self.0.as_detached_tensor().to_dtype(tensor.dtype())?);
///         let bias = parameters.bias.as_ref().map(scaled).transpose()?;
///         Ok(LinearParameters { weight: scaled(&parameters.weight)?, bias })
///     }
///
///     fn components(&self) -> Vec<Component> {
///         vec![Component::tensors("scaling_factor", Some(&self.0))]
///     }
/// }
///
/// impl AdapterMethod for Scaling {
///     fn peft_type(&self) -> &'static str {
///         "SCALING"
///     }
///
///     fn selection(&self) -> Selection<'_> {
///         Selection::of(Some(&self.targets))
///     }
///
///     fn faults(&self) -> Vec<(&'static str, String)> {
///         Vec::new()
///     }
///
///     fn check(&self, path: &ModulePath, kind: LayerKind, geometry: &Geometry) -> Option<Fault> {
///         let reason = "it has no output to scale".to_owned();
///         let fault = Fault::UnsupportedLayer { path: path.clone(), kind: kind.name, method: "scaling", reason };
///         (*geometry == Geometry::Opaque).then_some(fault)
///     }
///
///     fn build(&self, _: &Site<'_>, source: &mut dyn TensorSource) -> Result<Built> {
///         Ok(Built::new(Arc::new(Factor(source.tensor("scaling_factor", &[1], Init::Constant(1.0))?))))
///     }
///
///     fn resolved(&self, targets: TargetModules, _: bool) -> Arc<dyn AdapterMethod> {
///         Arc::new(Self { targets })
///     }
///
///     fn to_json(&self, _: &[(&ModulePath, &dyn Adapter)]) -> Result<String> {
///         Ok(serde_json::json!({"peft_type": "SCALING", "target_modules": self.targets}).to_string())
///     }
/// }
///
/// #[derive(Injectable)]
/// struct Model {
///     linear: Adapted<Linear>,
/// }
///
/// let mut model = Model { linear: Linear::new(Tensor::ones((3, 2), DType::F32, &Device::Cpu)?, None).into() };
/// model.inject_adapter(&Scaling { targets: targets!(Model; "linear") }, "default")?;
/// let (_, factor) = model.trainable_parameters().remove(0);
/// factor.set(&Tensor::new(&[5f32], &Device::Cpu)?)?;
/// let x = Tensor::ones((1, 2), DType::F32, &Device::Cpu)?;
/// assert_eq!(model.linear.forward(&x)?.to_vec2::<f32>()?, [[10.0, 10.0, 10.0]]);
/// model.merge_adapters(&MergeOptions::active())?;
/// assert_eq!(model.linear.forward(&x)?.to_vec2::<f32>()?, [[10.0, 10.0, 10.0]]);
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub trait AdapterMethod: Debug + Send + Sync + 'static {
    /// The method's name in messages and in `peft_type`.
    fn peft_type(&self) -> &'static str;

    /// Which modules the method is for.
    fn selection(&self) -> Selection<'_>;

    /// All that is wrong with the settings, by field.
    fn faults(&self) -> Vec<(&'static str, String)>;

    /// Why the method cannot adapt a layer of that shape, if it cannot.
    fn check(&self, path: &ModulePath, kind: LayerKind, geometry: &Geometry) -> Option<Fault>;

    /// The adapter of one layer, with tensors from `source`.
    ///
    /// # Errors
    /// If the tensors cannot be had.
    fn build(&self, site: &Site<'_>, source: &mut dyn TensorSource) -> Result<Built>;

    /// The settings as they are kept and saved: with the targets that were found, and whether the adapted linear
    /// layers store their weights transposed.
    fn resolved(&self, targets: TargetModules, transposed: bool) -> Arc<dyn AdapterMethod>;

    /// The text of the `adapter_config.json`, for these adapters.
    ///
    /// # Errors
    /// If a value has no JSON form.
    fn to_json(&self, adapters: &[(&ModulePath, &dyn Adapter)]) -> Result<String>;

    /// The settings with the modules that the model declares, or that its type is known for, where they name none;
    /// `None` if nothing is added.
    fn with_declared(&self, declared: &Declared, model_type: Option<&str>) -> Option<Arc<dyn AdapterMethod>> {
        let _ = (declared, model_type);
        None
    }

    /// The settings for tensors of these keys and shapes: their layers, their ranks, and the rest as in these settings.
    ///
    /// # Errors
    /// If the method cannot read that off its keys, or the keys are none of its own.
    fn for_tensors(&self, shapes: &BTreeMap<&str, &[usize]>) -> Result<Arc<dyn AdapterMethod>> {
        let _ = shapes;
        let reason = format!("{} cannot tell its layers by the keys", self.peft_type());
        Err(Error::Config { field: "state_dict", reason })
    }

    /// One adapter out of several, of which the first has these settings.
    ///
    /// # Errors
    /// If the method has no weighted combination, or the adapters do not go together.
    fn combine(&self, request: &Combination<'_>) -> Result<Combined> {
        let adapter = request.parts.first().map(|part| part.name.to_owned()).unwrap_or_default();
        let reason = format!("{} has no weighted combination", self.peft_type());
        Err(Error::Unsupported { operation: "combine", adapter, reason })
    }

    /// Which biases of the base model train along.
    fn bias(&self) -> Bias {
        Bias::None
    }

    /// Whether merging the adapter of the layer at `path` may change the layer's bias.
    fn changes_bias(&self, path: &ModulePath) -> bool {
        let _ = path;
        true
    }

    /// The seed of fresh tensors and dropout; that of the model's first adapter is the seed of the model's own dropout, too.
    fn seed(&self) -> u64 {
        0
    }

    /// The rank of the layer at `path`, if the method has ranks.
    fn rank(&self, path: &ModulePath) -> Option<usize> {
        let _ = path;
        None
    }

    /// The fields that describe the adapter, if it has them.
    fn common(&self) -> Option<&CommonFields> {
        None
    }

    /// The settings as LoRA's, if that is what they are.
    fn as_lora(&self) -> Option<&LoraConfig> {
        None
    }

    /// The settings as AdaLoRA's, if that is what they are.
    fn as_adalora(&self) -> Option<&AdaLoraConfig> {
        None
    }

    /// The settings as IA3's, if that is what they are.
    fn as_ia3(&self) -> Option<&Ia3Config> {
        None
    }
}

impl PeftConfig {
    /// The config as an adapter method.
    pub fn method(&self) -> &dyn AdapterMethod {
        match self {
            Self::Lora(config) => config,
            Self::AdaLora(config) => config,
            Self::Ia3(config) => config,
        }
    }

    /// The config as an adapter method that can be shared.
    pub fn into_method(self) -> Arc<dyn AdapterMethod> {
        match self {
            Self::Lora(config) => Arc::new(config),
            Self::AdaLora(config) => Arc::new(config),
            Self::Ia3(config) => Arc::new(config),
        }
    }
}

/// The adapter of one layer, and what becomes of the layer.
pub struct Built {
    /// The adapter.
    pub adapter: Arc<dyn Adapter>,
    /// The weight that the layer has from now on, if the method takes something out of it or quantises it.
    pub weight: Option<Tensor>,
}

impl Built {
    /// An adapter that leaves the layer as it is.
    pub fn new(adapter: Arc<dyn Adapter>) -> Self {
        Self { adapter, weight: None }
    }
}

impl<'c> Selection<'c> {
    /// The modules that `targets` names, or those that the model declares.
    pub fn of(targets: Option<&'c TargetModules>) -> Self {
        Self { targets, ..Self::default() }
    }
}

impl Selection<'_> {
    /// The settings that rule modules out, for messages; empty if there are none.
    pub(crate) fn describe_filters(&self) -> String {
        let mut filters = Vec::new();
        if let Some(exclude) = self.exclude {
            filters.push(format!("`exclude_modules` = {exclude}"));
        }
        if !self.modules_to_save.is_empty() {
            filters.push(format!("`modules_to_save` = [{}]", self.modules_to_save.join(", ")));
        }
        if let Some(layers) = self.layers_to_transform {
            filters.push(format!("`layers_to_transform` = {layers}"));
        }
        if let Some(containers) = self.layers_pattern {
            filters.push(format!("`layers_pattern` = [{}]", containers.join(", ")));
        }
        filters.join(" and ")
    }
}

/// Which modules a config names; [`of`](Self::of) makes one from targets alone, whose other fields can be set.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection<'c> {
    /// The modules to adapt; `None` leaves it to the model's own declaration.
    pub targets: Option<&'c TargetModules>,
    /// Modules to leave alone.
    pub exclude: Option<&'c TargetModules>,
    /// Modules of which the adapter trains a copy.
    pub modules_to_save: &'c [String],
    pub(crate) layers_to_transform: Option<&'c LayerIndices>,
    pub(crate) layers_pattern: Option<&'c [String]>,
    pub(crate) tokens: Option<&'c TokenIndices>,
    pub(crate) parameters: &'c [String],
    pub(crate) replication: &'c [(usize, usize)],
}
