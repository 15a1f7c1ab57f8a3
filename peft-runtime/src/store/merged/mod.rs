//! Base weights with adapters merged in: a way to use adapters with models whose source is somebody else's.

mod asked;
mod backend;
mod changes;
mod layer;
mod model_config;
mod other_half;
mod overlap;
mod placed_tensors;
mod shard;
mod tied_head;
mod verify;
mod weighted_adapter;
mod write;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use serde_json::Value;

use super::base_weights::{config_next_to, shapes_of};
use super::model_facts::ModelFacts;
use super::model_weights::{ModelWeights, module_names};
use super::name_map::NameMap;
use super::standalone::StoredAdapter;
use super::tied::{Tie, Tying};
use crate::adapter::LinearParameters;
use crate::error::Result;
use crate::inject::UnmatchedPattern;
use other_half::OtherHalf;
use weighted_adapter::WeightedAdapter;

pub use asked::Unadapted;
pub use write::{WriteProgress, WriteReport};

/// The weights of a base model with adapters merged in: any candle model loads from them, whoever wrote it.
///
/// Every tensor is read and merged when the model asks for it; nothing else is held. Adapters are merged in the order
/// in which they were added, with the formulas of [`merge_adapters`](crate::PeftModel::merge_adapters), in the dtype
/// that the model asks for. Call [`finish`](Self::finish) when the model is loaded: it reports tensors that no layer
/// took.
///
/// ```no_run
/// use candle_core::{DType, Device};
/// use peft_runtime::{MergedWeights, ModelWeights, StoredAdapter};
///
/// let merged = MergedWeights::new(ModelWeights::open("path/to/model")?)
///     .add(StoredAdapter::open("path/to/chat")?, 1.0)?
///     .add(StoredAdapter::open("path/to/code")?, 0.5)?;
/// let vb = merged.var_builder(DType::F32, &Device::Cpu);
/// // let model = candle_transformers::models::llama::Llama::load(vb, &config)?;
/// # let _ = vb;
/// merged.finish()?;
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub struct MergedWeights<B = ModelWeights> {
    base: Arc<B>,
    /// `config.json` of the base model, if it is known.
    config: Option<Arc<Value>>,
    /// The shapes of all tensors of the base model, if they can be listed.
    shapes: Option<Arc<BTreeMap<String, Vec<usize>>>>,
    /// Whether the base model's head has the weight of its embeddings.
    tying: Arc<Tying>,
    adapters: Vec<Arc<WeightedAdapter>>,
    /// The modules whose weights were asked for and have two dimensions or more.
    asked: Arc<Mutex<BTreeSet<String>>>,
    /// The other tensor of the layer merged last: the weight or the bias that was not asked for.
    other_half: OtherHalf,
}

impl<B> Clone for MergedWeights<B> {
    fn clone(&self) -> Self {
        Self {
            base: Arc::clone(&self.base),
            config: self.config.clone(),
            shapes: self.shapes.clone(),
            tying: Arc::clone(&self.tying),
            adapters: self.adapters.clone(),
            asked: Arc::clone(&self.asked),
            other_half: OtherHalf::default(),
        }
    }
}

impl<B> fmt::Debug for MergedWeights<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let adapters: Vec<&str> = self.adapters.iter().map(|adapter| adapter.name()).collect();
        f.debug_struct("MergedWeights").field("adapters", &adapters).finish_non_exhaustive()
    }
}

impl<B> MergedWeights<B> {
    /// The base model.
    #[cfg(feature = "models")]
    pub(crate) fn base(&self) -> &B {
        &self.base
    }

    /// The patterns for single layers in the adapters' configs that match none of their layers, each with its adapter's name.
    /// They have no effect.
    pub fn unmatched_patterns(&self) -> Vec<(String, UnmatchedPattern)> {
        let of = |adapter: &Arc<WeightedAdapter>| {
            let name = adapter.name().to_owned();
            adapter.unmatched_patterns().into_iter().map(move |unmatched| (name.clone(), unmatched))
        };
        self.adapters.iter().flat_map(of).collect()
    }

    /// What is known of the base model besides the values of its tensors.
    fn facts(&self) -> ModelFacts<'_> {
        ModelFacts { config: self.config.as_deref(), shapes: self.shapes.as_deref() }
    }
}

impl<B: SimpleBackend + 'static> MergedWeights<B> {
    /// The weights of a base model, with no adapters yet.
    ///
    /// `config.json` next to [`ModelWeights`] says what the tensors do not: how square weights lie, and whether the head has
    /// the weight of the embeddings.
    pub fn new(base: B) -> Self {
        let any: &dyn Any = &base;
        // A file that is not JSON says nothing; what needs it is then refused.
        let config =
            any.downcast_ref::<ModelWeights>().and_then(|weights| config_next_to(weights).ok().flatten());
        Self::of(base, config)
    }

    /// The same with what the model's `config.json` says, for a config that does not lie next to the weights.
    pub fn with_model_config(base: B, config: Value) -> Self {
        Self::of(base, Some(config))
    }

    fn of(base: B, config: Option<Value>) -> Self {
        let any: &dyn Any = &base;
        let shapes = any.downcast_ref::<ModelWeights>().map(|weights| Arc::new(shapes_of(weights)));
        let config = config.map(Arc::new);
        let facts = ModelFacts { config: config.as_deref(), shapes: shapes.as_deref() };
        let tying = Arc::new(Tying::of(facts, &|name| base.contains_tensor(name)));
        Self {
            base: Arc::new(base),
            config,
            shapes,
            tying,
            adapters: Vec::new(),
            asked: Arc::default(),
            other_half: OtherHalf::default(),
        }
    }

    /// Merges an adapter whose paths are those of the base model, with its scaling multiplied by `weight`.
    ///
    /// Modules that the adapter trained in full, rows of embeddings and biases replace the base model's, whatever the
    /// weight.
    ///
    /// # Errors
    /// [`Error::Tensors`](crate::Error::Tensors) with the tensors that belong to nothing in the base model;
    /// [`Error::Plan`](crate::Error::Plan) if the config does not fit the tensors;
    /// [`Error::Unsupported`](crate::Error::Unsupported) if the adapter cannot be merged without a model, or cannot be
    /// weighted; [`Error::CopiesCollide`](crate::Error::CopiesCollide) if two adapters replace the same module.
    pub fn add(self, adapter: StoredAdapter, weight: f64) -> Result<Self> {
        self.add_renamed(adapter, weight, &NameMap::new())
    }

    /// Merges an adapter as [`add`](Self::add) does; `names` maps its module names to the base model's.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_renamed(mut self, adapter: StoredAdapter, weight: f64, names: &NameMap) -> Result<Self> {
        self.check_head_is_there(&adapter, names)?;
        // Of an adapter that keeps the two tied, what it has for the head is what it has for the embeddings.
        let head = self.tie().filter(|_| !adapter.method().selection().ties).map(Tie::head_weight);
        let has = |name: &str| self.base.contains_tensor(name) || head.as_deref() == Some(name);
        let adapter =
            WeightedAdapter::new(adapter, weight, names, &has, &|| module_names(self.base.as_ref()))?;
        self.check_head(&adapter)?;
        adapter.check_beside(&self.adapters)?;
        let was_parted = self.parted().is_some();
        self.adapters.push(Arc::new(adapter));
        self.check_tying_is_known()?;
        if !was_parted {
            self.check_tied_values()?;
        }
        // What was merged without this adapter is out of date.
        self.other_half = OtherHalf::default();
        Ok(self)
    }

    /// A `VarBuilder` over the merged weights, for candle's models.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device.clone())
    }

    /// The tensor called `name` with everything that changes it merged in; `read` reads the base model's.
    ///
    /// The weight and bias of a layer are merged together: the one that was not asked for is kept for the next call.
    fn tensor(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
        read: &dyn Fn() -> CandleResult<Tensor>,
    ) -> Result<Tensor> {
        if let Some(merged) = self.other_half.take(name, dtype, device) {
            self.note_asked(name, merged.rank());
            return Ok(merged);
        }
        if let Some(tie) = self.tie().filter(|tie| self.parted().is_none() && name == tie.head_weight()) {
            let table = tie.table_weight();
            return self.tensor(&table, dtype, device, &|| self.base.get_unchecked(&table, dtype, device));
        }
        let own = self.replaced(name, dtype, device, read)?;
        self.note_asked(name, own.rank());
        let Some((module, parameter)) = name.rsplit_once('.') else { return Ok(own) };
        let bare = self.layers_of(name);
        if !bare.is_empty() {
            return Ok(
                layer::merge(&bare, LinearParameters { weight: own, bias: None }, self.facts())?.weight
            );
        }
        let layers = self.layers_of(module);
        let changes_bias = layers.iter().any(|(adapter, layer)| adapter.changes_bias(layer));
        let other = |name: &str| {
            let read = || self.base.get_unchecked(name, dtype, device);
            self.replaced(name, dtype, device, &read)
        };
        match parameter {
            "weight" if !layers.is_empty() => {
                let bias_name = format!("{module}.bias");
                let has_bias = changes_bias && self.has(&bias_name);
                let bias = if has_bias { Some(other(&bias_name)?) } else { None };
                let parameters = LinearParameters { weight: own, bias };
                let merged = layer::merge(&layers, parameters, self.facts())?;
                if let Some(bias) = merged.bias {
                    self.other_half.keep(bias_name, dtype, bias);
                }
                Ok(merged.weight)
            }
            "bias" if changes_bias => {
                let weight_name = format!("{module}.weight");
                let (weight, bias) = (other(&weight_name)?, Some(own.clone()));
                let merged = layer::merge(&layers, LinearParameters { weight, bias }, self.facts())?;
                self.other_half.keep(weight_name, dtype, merged.weight);
                Ok(merged.bias.unwrap_or(own))
            }
            _ => Ok(own),
        }
    }

    /// The base model's tensor called `name`, or what adapters replace it with.
    fn replaced(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
        read: &dyn Fn() -> CandleResult<Tensor>,
    ) -> Result<Tensor> {
        self.note_shared_values(name);
        let mut whole = None;
        let mut rows = Vec::new();
        for adapter in &self.adapters {
            for replacement in adapter.replacements_of(name) {
                let value = adapter.read(&replacement.key, device)?.to_dtype(dtype)?;
                match &replacement.rows {
                    None => whole = Some(value),
                    Some(range) => rows.push((range.clone(), value)),
                }
            }
        }
        let mut tensor = match (whole, self.tie()) {
            (Some(value), _) => value,
            (None, Some(tie)) if self.shares(tie, name) => self.shared_table(tie, dtype, device)?,
            (None, _) => read()?,
        };
        for (range, value) in rows {
            tensor = layer::with_rows(&tensor, 0, &range, &value)?;
        }
        Ok(tensor)
    }

    /// Whether the tensor called `name` begins as the one that head and embeddings share.
    fn shares(&self, tie: &Tie, name: &str) -> bool {
        match self.parted() {
            Some(_) => name == tie.head_weight(),
            None => name == tie.table_weight(),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.base.contains_tensor(name)
            || self.adapters.iter().any(|adapter| adapter.brings(name))
            || self.parted().is_some_and(|tie| name == tie.head_weight())
    }
}
