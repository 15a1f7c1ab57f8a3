//! Base weights with adapters merged in: a way to use adapters with models whose source is somebody else's.

mod layer;
mod other_half;
mod placed_tensors;
mod shard;
mod verify;
mod weighted_adapter;
mod write;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result as CandleResult, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

use super::model_weights::{ModelWeights, module_names};
use super::name_map::NameMap;
use super::standalone::StoredAdapter;
use crate::adapter::LinearParameters;
use crate::error::{Result, TensorReport};
use other_half::OtherHalf;
use placed_tensors::PlacedLayer;
use weighted_adapter::WeightedAdapter;

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
    adapters: Vec<Arc<WeightedAdapter>>,
    /// The modules whose weights were asked for and have two dimensions or more.
    asked: Arc<Mutex<BTreeSet<String>>>,
    /// The other tensor of the layer merged last: the weight or the bias that was not asked for.
    other_half: OtherHalf,
}

/// A module that an adapter's config targets but its file has no tensors for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unadapted {
    /// The adapter.
    pub adapter: String,
    /// The module.
    pub module: String,
}

impl<B> Clone for MergedWeights<B> {
    fn clone(&self) -> Self {
        Self {
            base: Arc::clone(&self.base),
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
    /// The modules that were asked for and that an adapter's config targets, but its file has no tensors for.
    ///
    /// # Errors
    /// If a pattern in a config takes too long to match.
    pub fn unadapted(&self) -> Result<Vec<Unadapted>> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unadapted = Vec::new();
        for adapter in &self.adapters {
            for module in asked.iter() {
                if adapter.left_out(module)? {
                    let (adapter, module) = (adapter.name().to_owned(), module.clone());
                    unadapted.push(Unadapted { adapter, module });
                }
            }
        }
        Ok(unadapted)
    }

    /// Checks that the loaded model took everything that the adapters have.
    ///
    /// # Errors
    /// [`Error::Tensors`](crate::Error::Tensors) with the tensors that belong to no layer of the model, and with the
    /// layers that the config names but the file has no tensors for.
    pub fn finish(&self) -> Result<()> {
        self.other_half.clear();
        let unadapted = self.unadapted()?;
        for adapter in &self.adapters {
            let missing = unadapted.iter().filter(|missing| missing.adapter == adapter.name());
            let missing = missing.map(|missing| missing.module.clone()).collect();
            adapter.check(TensorReport {
                missing,
                unexpected: adapter.unused(),
                ..TensorReport::default()
            })?;
        }
        Ok(())
    }

    /// Notes that the tensor `name`, which has so many dimensions, was asked for.
    fn note_asked(&self, name: &str, dimensions: usize) {
        if let Some((module, "weight")) = name.rsplit_once('.').filter(|_| dimensions > 1) {
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(module.to_owned());
        }
    }

    /// Returns an error if an adapter has tensors that were not asked for.
    fn check_used(&self) -> Result<()> {
        for adapter in &self.adapters {
            adapter.check(TensorReport { unexpected: adapter.unused(), ..TensorReport::default() })?;
        }
        Ok(())
    }
}

impl<B: SimpleBackend + 'static> MergedWeights<B> {
    /// The weights of a base model, with no adapters yet.
    pub fn new(base: B) -> Self {
        Self {
            base: Arc::new(base),
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
        let has = |name: &str| self.base.contains_tensor(name);
        let adapter =
            WeightedAdapter::new(adapter, weight, names, &has, &|| module_names(self.base.as_ref()))?;
        adapter.check_beside(&self.adapters)?;
        self.adapters.push(Arc::new(adapter));
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
        let own = self.replaced(name, dtype, device, read)?;
        self.note_asked(name, own.rank());
        let Some((module, parameter)) = name.rsplit_once('.') else { return Ok(own) };
        let layers: Vec<(&WeightedAdapter, &PlacedLayer)> = self
            .adapters
            .iter()
            .flat_map(|adapter| adapter.layers_of(module).iter().map(move |layer| (adapter.as_ref(), layer)))
            .collect();
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
                let merged = layer::merge(&layers, LinearParameters { weight: own, bias })?;
                if let Some(bias) = merged.bias {
                    self.other_half.keep(bias_name, dtype, bias);
                }
                Ok(merged.weight)
            }
            "bias" if changes_bias => {
                let weight_name = format!("{module}.weight");
                let (weight, bias) = (other(&weight_name)?, Some(own.clone()));
                let merged = layer::merge(&layers, LinearParameters { weight, bias })?;
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
        let mut tensor = match whole {
            Some(value) => value,
            None => read()?,
        };
        for (range, value) in rows {
            tensor = layer::with_rows(&tensor, 0, &range, &value)?;
        }
        Ok(tensor)
    }

    fn has(&self, name: &str) -> bool {
        self.base.contains_tensor(name) || self.adapters.iter().any(|adapter| adapter.brings(name))
    }
}

impl<B: SimpleBackend + 'static> SimpleBackend for MergedWeights<B> {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        hints: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> CandleResult<Tensor> {
        let read = || self.base.get(shape.clone(), name, hints, dtype, device);
        let tensor = self.tensor(name, dtype, device, &read)?;
        if *tensor.shape() == shape {
            return Ok(tensor);
        }
        let msg = format!("the shape of `{name}` does not fit the model");
        Err(candle_core::Error::UnexpectedShape { msg, expected: shape, got: tensor.shape().clone() }.bt())
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> CandleResult<Tensor> {
        let read = || self.base.get_unchecked(name, dtype, device);
        Ok(self.tensor(name, dtype, device, &read)?)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.has(name)
    }
}
