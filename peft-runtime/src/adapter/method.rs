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
/// The configs implement it; implementing it for a type of your own adds a method of your own.
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

    /// The seed of fresh tensors and dropout.
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

/// Which modules a config names.
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
