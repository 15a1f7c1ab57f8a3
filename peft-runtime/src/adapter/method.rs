//! The settings of an adapter, whatever its method, and what a combination of several is made of.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use candle_core::Tensor;

use super::{
    Adapter, Built, Geometry, KeyedShapes, LayerSettings, LayerShapes, Selection, Site, TensorSource,
};
use crate::config::{Bias, CombineOptions, CommonFields};
use crate::declared::Declared;
use crate::error::{CombinationError, Error, Fault, Result};
use crate::path::ModulePath;
use crate::schema::LayerKind;
use crate::select::TargetModules;

/// A config of any method: it chooses modules and makes the adapter for each.
///
/// [`AdapterConfig`](crate::method::AdapterConfig) implements it for every [`Method`](crate::method::Method), whose page shows
/// how to write one of your own. The library uses methods only through this trait.
pub trait AdapterMethod: Any + Debug + Send + Sync {
    /// The value of `peft_type` in files.
    fn peft_type(&self) -> &'static str;

    /// The method's name in messages.
    fn name(&self) -> &'static str;

    /// The same settings, shared.
    fn share(&self) -> Arc<dyn AdapterMethod>;

    /// Which modules the config selects.
    fn selection(&self) -> Selection<'_>;

    /// Everything that is wrong with the settings, by field.
    fn faults(&self) -> Vec<(&'static str, String)>;

    /// What the layer at `path` gets.
    ///
    /// # Errors
    /// If the method cannot adapt a layer of that shape; the fault says why.
    fn plan_layer(
        &self,
        path: &ModulePath,
        kind: LayerKind,
        geometry: &Geometry,
    ) -> Result<LayerSettings, Fault>;

    /// The adapter for one layer, with the settings planned for it and with tensors from `source`.
    ///
    /// # Errors
    /// If the tensors cannot be obtained.
    fn build(
        &self,
        site: &Site<'_>,
        settings: &LayerSettings,
        source: &mut dyn TensorSource,
    ) -> Result<Built>;

    /// The adapter for the rows of `tokens` in an embedding.
    ///
    /// # Errors
    /// If the tensors cannot be obtained.
    fn build_tokens(&self, site: &Site<'_>, tokens: &[u32], source: &mut dyn TensorSource) -> Result<Built>;

    /// The settings as they are kept and saved: with the targets that were found, and whether the adapted linear
    /// layers store their weights transposed.
    fn resolved(&self, targets: TargetModules, transposed: bool) -> Arc<dyn AdapterMethod>;

    /// The settings with the embedding where they name one of two layers that have one weight, and what the output layer gets
    /// from the embedding; `None` if they name neither.
    ///
    /// # Errors
    /// Why the two cannot share what they get.
    fn tied(&self, embedding: &ModulePath, head: &ModulePath) -> Result<Option<TiedMethod>, Fault>;

    /// Whether a long list of targets may be saved as the ends of their paths.
    fn shortens_targets(&self) -> bool;

    /// The settings with the modules that the model declares, or the defaults for its type, where the settings name
    /// none; `None` if nothing is added.
    fn with_declared(&self, declared: &Declared, model_type: Option<&str>) -> Option<Arc<dyn AdapterMethod>>;

    /// The patterns of the settings that match none of the adapted layers at `paths`, each with its field.
    ///
    /// # Errors
    /// If a pattern cannot be matched.
    fn unmatched_patterns(&self, paths: &[&str]) -> Result<Vec<(&'static str, String)>, Fault>;

    /// The settings for tensors with these keys and shapes: their layers, their ranks, and the rest as in `self`.
    ///
    /// # Errors
    /// If the tensors contradict the settings.
    fn for_tensors(&self, keyed: &KeyedShapes<'_>) -> Result<Arc<dyn AdapterMethod>>;

    /// The text of the `adapter_config.json`, for these adapters.
    ///
    /// # Errors
    /// If a value has no JSON form.
    fn to_json(&self, adapters: &[(&ModulePath, &dyn Adapter)]) -> Result<String>;

    /// One adapter out of several, of which the first has these settings.
    ///
    /// # Errors
    /// If the method has no weighted combination, or the adapters cannot be combined.
    fn combine(&self, request: &Combination<'_>) -> Result<Combined>;

    /// Which biases of the base model train as well.
    fn bias(&self) -> Bias;

    /// The seed of fresh tensors and dropout; that of the model's first adapter is also the seed of the model's own dropout.
    fn seed(&self) -> u64;

    /// The fields that describe the adapter.
    fn common(&self) -> &CommonFields;

    /// Whether the adapters have a scaling, into which a weight can be multiplied.
    fn has_scaling(&self) -> bool;

    /// Whether making the adapters changes the base model's weights.
    fn changes_base(&self) -> bool;

    /// Why the adapter cannot be saved as it is, if it cannot.
    fn unsavable(&self) -> Option<String>;

    /// Whether the adapted linear layers store their weights as `[in, out]`.
    fn is_transposed(&self) -> bool;

    /// How the ends of the method's keys begin: `lora_`.
    fn key_prefix(&self) -> &'static str;

    /// The ends of all keys that the method has; empty if only their beginning is known.
    fn key_ends(&self) -> &'static [&'static str];

    /// Ends of keys of tensors that say nothing about the adapter.
    fn inert_key_ends(&self) -> &'static [&'static str];

    /// A key split into the path of the layer and the end that names the tensor; `None` for a key of the base model or
    /// of a layer that trains in full.
    fn split_key<'k>(&self, key: &'k str) -> Option<(&'k str, &'k str)>;

    /// The canonical name of a tensor that files store under several names.
    fn canonical_key<'k>(&self, key: &'k str) -> &'k str;

    /// The geometry of the layer that has tensors of these shapes and, if it is known, a weight of this shape.
    ///
    /// `transposed` says whether a square weight of a linear layer is stored transposed. What neither the tensors nor
    /// the weight show (how a window moves, the other dimension of a layer that has only a vector) is set to its
    /// minimum; merging and combining do not use it. `None` if the tensors are not the method's.
    fn geometry(&self, shapes: &LayerShapes, weight: Option<&[usize]>, transposed: bool) -> Option<Geometry>;

    /// Which part of a combination with these options starts again from the base model's weight, if the tensor with this
    /// end of a key does.
    fn restarts_from_base(&self, key: &str, options: &CombineOptions) -> Option<&'static str>;

    /// The settings completed with what a model would have supplied, read from the layers of the file and the ends of
    /// their keys.
    fn without_model(&self, layers: &BTreeMap<&str, Vec<&str>>) -> Arc<dyn AdapterMethod>;

    /// The settings with which to read a file's tensors if there are no base weights.
    fn without_base(&self) -> Arc<dyn AdapterMethod>;

    /// The settings of an adapter that computes the same on the base weights as they were before this one changed them, with
    /// the tensors of [`Adapter::for_original_base`]; `None` if the method has no such form.
    fn for_original_base(&self) -> Option<Arc<dyn AdapterMethod>>;

    /// An error if the adapter has no form as plain LoRA; `has_base` says whether the base weights are known.
    ///
    /// # Errors
    /// If it has none; the message says why.
    fn check_plain_lora(&self, has_base: bool) -> Result<(), String>;

    /// The settings of plain LoRA with these ranks, by path; `None` if the method has no such form.
    ///
    /// # Errors
    /// If the settings cannot be written.
    fn plain_lora(&self, ranks: &BTreeMap<&str, usize>) -> Result<Option<PlainLora>>;
}

impl dyn AdapterMethod {
    /// The settings as `C`, if that is what they are: `method.downcast_ref::<LoraConfig>()`.
    pub fn downcast_ref<C: AdapterMethod>(&self) -> Option<&C> {
        let any: &dyn Any = self;
        any.downcast_ref()
    }
}

/// What an output layer gets from the embedding that has the same weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// The embedding's adapter.
    Adapter,
    /// The embedding's full copy.
    Copy,
}

/// Settings that mean an embedding, and what the output layer with the same weight gets from it.
pub type TiedMethod = (Arc<dyn AdapterMethod>, Shared);

/// Settings of plain LoRA.
#[derive(Clone, Debug)]
pub struct PlainLora {
    /// The settings.
    pub method: Arc<dyn AdapterMethod>,
    /// Alpha, which readers divide by a layer's rank.
    pub alpha: f64,
}

/// Adapters of a model that are to become one.
pub struct Combination<'a> {
    /// The adapters, in the order given.
    pub parts: Vec<CombinationPart<'a>>,
    /// The layers that at least one of them adapts, in model order.
    pub layers: Vec<CombinedLayer<'a>>,
    /// How they are combined.
    pub options: &'a CombineOptions,
}

/// One of the adapters.
#[derive(Clone, Copy)]
pub struct CombinationPart<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its weight in the sum.
    pub weight: f64,
    /// Its settings.
    pub method: &'a dyn AdapterMethod,
}

/// One layer, with what each of the adapters has on it.
pub struct CombinedLayer<'a> {
    /// The layer.
    pub site: Site<'a>,
    /// The state of each adapter, in the order of [`Combination::parts`]; `None` where it does not adapt the layer.
    pub adapters: Vec<Option<&'a dyn Adapter>>,
}

/// The adapter that several became.
pub struct Combined {
    /// Its settings.
    pub method: Arc<dyn AdapterMethod>,
    /// Its tensors, by path and key.
    pub tensors: BTreeMap<String, Tensor>,
}

impl<'a> Combination<'a> {
    /// An error that says why the adapter `part` rules the combination out.
    pub fn refuse<T>(part: &CombinationPart<'_>, reason: impl Into<String>) -> Result<T> {
        Err(Error::Unsupported { operation: "combine", adapter: part.name.to_owned(), reason: reason.into() })
    }

    /// An error that says why adapters of this method have no combination.
    pub fn refuse_all<T>(&self, reason: impl Into<String>) -> Result<T> {
        let adapter = self.parts.first().map(|part| part.name.to_owned()).unwrap_or_default();
        Err(Error::Unsupported { operation: "combine", adapter, reason: reason.into() })
    }

    /// The settings of all parts as those of one method.
    ///
    /// # Errors
    /// [`CombinationError::Methods`] if the method of a part differs from that of the first.
    pub fn configs<C: AdapterMethod>(&self) -> Result<Vec<&'a C>> {
        let first = self.parts.first().map(|part| part.method.peft_type()).unwrap_or_default();
        let config = |part: &CombinationPart<'a>| match part.method.downcast_ref::<C>() {
            Some(config) => Ok(config),
            None => {
                let (adapter, method) = (part.name.to_owned(), part.method.peft_type().to_owned());
                Err(CombinationError::Methods { adapter, method, first: first.to_owned() }.into())
            }
        };
        self.parts.iter().map(config).collect()
    }
}

impl<'a> CombinedLayer<'a> {
    /// The states that the layer has, each with its part.
    pub fn states<'s, A: Adapter>(
        &'s self,
        parts: &'s [CombinationPart<'a>],
    ) -> Vec<(&'s CombinationPart<'a>, &'a A)> {
        let states = parts.iter().zip(&self.adapters);
        states.filter_map(|(part, state)| Some((part, (*state)?.downcast_ref()?))).collect()
    }
}
