//! A checkpoint that answers with adapters merged in: the way to adapters for models whose source is somebody else's.

mod layer;
mod names;
mod part;
mod shard;
mod verify;
mod write;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result as CandleResult, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

use super::checkpoint::Checkpoint;
use super::standalone::StoredAdapter;
use crate::adapter::LinearParameters;
use crate::error::{Error, Result, TensorReport};
use part::{Part, PlacedLayer};

pub use names::NameMap;
pub use write::{WriteProgress, WriteReport};

/// The weights of a base model with adapters merged in: any model of candle loads from them, whoever wrote it.
///
/// Every tensor is read, and merged, when the model asks for it; nothing else is held. Adapters are merged in the order in
/// which they were added, with the formulas of [`merge_adapters`](crate::PeftModel::merge_adapters), in the dtype that the
/// model asks for. Call [`finish`](Self::finish) when the model is loaded: it tells of tensors that no layer took.
///
/// ```no_run
/// use candle_core::{DType, Device};
/// use peft_runtime::{Checkpoint, MergedWeights, StoredAdapter};
///
/// let merged = MergedWeights::new(Checkpoint::open("path/to/model")?)
///     .add(StoredAdapter::open("path/to/chat")?, 1.0)?
///     .add(StoredAdapter::open("path/to/code")?, 0.5)?;
/// let vb = merged.var_builder(DType::F32, &Device::Cpu);
/// // let model = candle_transformers::models::llama::Llama::load(vb, &config)?;
/// # let _ = vb;
/// merged.finish()?;
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub struct MergedWeights<B = Checkpoint> {
    base: Arc<B>,
    parts: Vec<Arc<Part>>,
    /// The modules whose weights were asked for and have two dimensions or more.
    asked: Arc<Mutex<BTreeSet<String>>>,
}

/// A module that an adapter's config means and that its file has no tensors for.
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
        Self { base: Arc::clone(&self.base), parts: self.parts.clone(), asked: Arc::clone(&self.asked) }
    }
}

impl<B> fmt::Debug for MergedWeights<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let adapters: Vec<&str> = self.parts.iter().map(|part| part.name()).collect();
        f.debug_struct("MergedWeights").field("adapters", &adapters).finish_non_exhaustive()
    }
}

impl<B> MergedWeights<B> {
    /// The modules that were asked for, that an adapter's config means, and that its file has no tensors for.
    ///
    /// # Errors
    /// If a pattern of a config takes too long to match.
    pub fn unadapted(&self) -> Result<Vec<Unadapted>> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unadapted = Vec::new();
        for part in &self.parts {
            for module in asked.iter() {
                if part.left_out(module)? {
                    let (adapter, module) = (part.name().to_owned(), module.clone());
                    unadapted.push(Unadapted { adapter, module });
                }
            }
        }
        Ok(unadapted)
    }

    /// Says whether the model that was loaded took everything that the adapters have.
    ///
    /// # Errors
    /// [`Error::Tensors`] with the tensors that belong to no layer of the model, and with the layers that the config names
    /// and that the file has no tensors for.
    pub fn finish(&self) -> Result<()> {
        let unadapted = self.unadapted()?;
        for part in &self.parts {
            let missing = unadapted.iter().filter(|missing| missing.adapter == part.name());
            let missing = missing.map(|missing| missing.module.clone()).collect();
            part.check(TensorReport { missing, unexpected: part.unused(), ..TensorReport::default() })?;
        }
        Ok(())
    }

    /// Notes that a tensor of so many dimensions was asked for.
    fn note_asked(&self, name: &str, dimensions: usize) {
        if let Some((module, "weight")) = name.rsplit_once('.').filter(|_| dimensions > 1) {
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(module.to_owned());
        }
    }

    /// An error if an adapter has tensors that were not asked for.
    fn check_used(&self) -> Result<()> {
        for part in &self.parts {
            part.check(TensorReport { unexpected: part.unused(), ..TensorReport::default() })?;
        }
        Ok(())
    }
}

impl<B: SimpleBackend + 'static> MergedWeights<B> {
    /// The weights of a base model, without an adapter yet.
    pub fn new(base: B) -> Self {
        Self { base: Arc::new(base), parts: Vec::new(), asked: Arc::default() }
    }

    /// Merges an adapter whose paths are those of the checkpoint, its scaling times `weight`.
    ///
    /// Modules that the adapter trained in full, rows of embeddings and biases take the place of the base model's, whatever
    /// the weight.
    ///
    /// # Errors
    /// [`Error::Tensors`] with the tensors that belong to nothing in the checkpoint; [`Error::Plan`] if the config does not
    /// fit the tensors; [`Error::Unsupported`] if the adapter cannot be merged without a model, or cannot be weighted;
    /// [`Error::CopiesCollide`] if two adapters replace the same module.
    pub fn add(self, adapter: StoredAdapter, weight: f64) -> Result<Self> {
        self.add_renamed(adapter, weight, &NameMap::new())
    }

    /// Merges an adapter as [`add`](Self::add) does, with names of its own for the checkpoint's modules.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_renamed(mut self, adapter: StoredAdapter, weight: f64, names: &NameMap) -> Result<Self> {
        let part = Part::new(adapter, weight, names, &|name| self.base.contains_tensor(name))?;
        part.check_beside(&self.parts)?;
        self.parts.push(Arc::new(part));
        Ok(self)
    }

    /// A builder over the merged weights, as candle's models take it.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device.clone())
    }

    /// The tensor called `name` with everything merged that changes it; `read` reads the base model's.
    fn tensor(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
        read: &dyn Fn() -> CandleResult<Tensor>,
    ) -> Result<Tensor> {
        let own = self.replaced(name, dtype, device, read)?;
        self.note_asked(name, own.rank());
        let Some((module, parameter)) = name.rsplit_once('.') else { return Ok(own) };
        let layers: Vec<(&Part, &PlacedLayer)> = self
            .parts
            .iter()
            .flat_map(|part| part.layers_of(module).iter().map(move |layer| (part.as_ref(), layer)))
            .collect();
        let changes_bias = layers.iter().any(|(part, layer)| part.changes_bias(layer));
        let other = |name: String| {
            let read = || self.base.get_unchecked(&name, dtype, device);
            self.replaced(&name, dtype, device, &read)
        };
        match parameter {
            "weight" if !layers.is_empty() => {
                let name = format!("{module}.bias");
                let has_bias = changes_bias && self.has(&name);
                let bias = if has_bias { Some(other(name)?) } else { None };
                Ok(layer::merge(&layers, LinearParameters { weight: own, bias })?.weight)
            }
            "bias" if changes_bias => {
                let weight = other(format!("{module}.weight"))?;
                let bias = Some(own.clone());
                Ok(layer::merge(&layers, LinearParameters { weight, bias })?.bias.unwrap_or(own))
            }
            _ => Ok(own),
        }
    }

    /// The base model's tensor called `name`, or what adapters have in its place.
    fn replaced(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
        read: &dyn Fn() -> CandleResult<Tensor>,
    ) -> Result<Tensor> {
        let mut whole = None;
        let mut rows = Vec::new();
        for part in &self.parts {
            for replacement in part.replacements_of(name) {
                let value = part.read(&replacement.key, device)?.to_dtype(dtype)?;
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
        self.base.contains_tensor(name) || self.parts.iter().any(|part| part.brings(name))
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

/// Why an adapter cannot be merged without a model.
fn unsupported(adapter: &str, reason: String) -> Error {
    Error::Unsupported { operation: "merge", adapter: adapter.to_owned(), reason }
}
