//! Where the tensors of a new adapter come from: drawn afresh, or read from a file.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor, Var};

use super::init::Init;
use crate::error::{Result, ShapeMismatch, TensorReport};
use crate::ops::random;
use crate::path::ModulePath;

/// Supplies the tensors of one adapter on one layer.
pub trait TensorSource {
    /// The tensor whose file key ends in `key`, of the given shape; if it is drawn, `init` gives its initial values.
    ///
    /// # Errors
    /// If the values cannot be computed.
    fn tensor(&mut self, key: &'static str, shape: &[usize], init: Init<'_>) -> Result<Var>;

    /// Whether the tensors are drawn afresh rather than read.
    fn is_fresh(&self) -> bool;
}

/// Draws tensors from streams named after the adapter, the layer and the key.
pub(crate) struct FreshTensors<'a> {
    pub(crate) seed: u64,
    pub(crate) adapter: &'a str,
    pub(crate) path: &'a ModulePath,
    pub(crate) dtype: DType,
    pub(crate) device: &'a Device,
}

impl TensorSource for FreshTensors<'_> {
    fn tensor(&mut self, key: &'static str, shape: &[usize], init: Init<'_>) -> Result<Var> {
        let label = format!("{}/{}/{key}", self.adapter, self.path);
        let mut rng = random::stream(self.seed, &label, 0);
        init.draw(&mut rng, shape, self.dtype, self.device)
    }

    fn is_fresh(&self) -> bool {
        true
    }
}

/// Takes tensors out of a state dict and keeps track of what is missing, left over or of the wrong shape.
pub(crate) struct StoredTensors<'a> {
    tensors: &'a BTreeMap<String, StoredTensor<'a>>,
    used: BTreeSet<String>,
    missing: Vec<String>,
    mismatched: Vec<ShapeMismatch>,
}

/// Reads a tensor onto a device.
pub(crate) type ReadTensor<'a> = Box<dyn Fn(&Device) -> candle_core::Result<Tensor> + 'a>;

/// Reads the values of a tensor into memory of their own.
pub(crate) type ReadValues<'a> = Box<dyn Fn() -> Result<Vec<f32>> + 'a>;

/// A tensor that is read when it is needed.
pub(crate) struct StoredTensor<'a> {
    pub(crate) shape: Vec<usize>,
    pub(crate) read: ReadTensor<'a>,
    /// For a tensor in f32 in a file: what a variable holds without a copy in between.
    pub(crate) values: Option<ReadValues<'a>>,
}

impl<'a> StoredTensor<'a> {
    /// A tensor that is in memory already.
    pub(crate) fn in_memory(tensor: &'a Tensor) -> Self {
        let read = move |device: &Device| tensor.detach().to_device(device);
        Self { shape: tensor.dims().to_vec(), read: Box::new(read), values: None }
    }

    /// The tensor as a new variable.
    fn variable(&self, dtype: DType, device: &Device) -> Result<Var> {
        match &self.values {
            Some(values) if dtype == DType::F32 && device.is_cpu() => {
                Ok(Var::from_vec(values()?, self.shape.as_slice(), device)?)
            }
            _ => Ok(Var::from_tensor(&(self.read)(device)?.to_dtype(dtype)?)?),
        }
    }
}

impl<'a> StoredTensors<'a> {
    /// `tensors` are stored under their keys without the prefix `base_model.model.`.
    pub(crate) fn new(tensors: &'a BTreeMap<String, StoredTensor<'a>>) -> Self {
        Self { tensors, used: BTreeSet::new(), missing: Vec::new(), mismatched: Vec::new() }
    }

    /// The tensor at `key` as a variable; an empty one, and a note in the report, if there is none of that shape.
    pub(crate) fn take(
        &mut self,
        key: String,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Var> {
        let Some(stored) = self.tensors.get(&key) else {
            self.missing.push(key);
            return Ok(Var::zeros(0, DType::F32, &Device::Cpu)?);
        };
        self.used.insert(key.clone());
        if stored.shape != shape {
            let (expected, found) = (shape.to_vec(), stored.shape.clone());
            self.mismatched.push(ShapeMismatch { key, expected, found });
            return Ok(Var::zeros(0, DType::F32, &Device::Cpu)?);
        }
        stored.variable(dtype, device)
    }

    /// Counts the tensors at these keys as used.
    pub(crate) fn ignore(&mut self, is_ignored: impl Fn(&str) -> bool) {
        self.used.extend(self.tensors.keys().filter(|key| is_ignored(key)).cloned());
    }

    /// Whether the tensor at `key`, which counts as used, repeats `value`; also if there is none.
    pub(crate) fn repeats(&mut self, key: &str, value: &Tensor) -> Result<bool> {
        let Some(stored) = self.tensors.get(key) else { return Ok(true) };
        self.used.insert(key.to_owned());
        if stored.shape != value.dims() {
            return Ok(false);
        }
        let bits = |tensor: &Tensor| -> candle_core::Result<Vec<u64>> {
            let values = tensor.flatten_all()?.to_dtype(DType::F64)?.to_device(&Device::Cpu)?;
            Ok(values.to_vec1::<f64>()?.into_iter().map(f64::to_bits).collect())
        };
        let own = (stored.read)(value.device())?.to_dtype(value.dtype())?;
        Ok(bits(&own)? == bits(value)?)
    }

    /// Reads the tensors of one layer.
    pub(crate) fn of_layer<'s>(
        &'s mut self,
        path: &'s ModulePath,
        dtype: DType,
        device: &'s Device,
    ) -> LayerTensors<'s, 'a> {
        LayerTensors { stored: self, path, dtype, device }
    }

    /// What did not fit; keys that were never requested count as unexpected.
    pub(crate) fn report(self) -> TensorReport {
        let unexpected = self.tensors.keys().filter(|key| !self.used.contains(*key)).cloned().collect();
        TensorReport {
            missing: self.missing,
            unexpected,
            mismatched: self.mismatched,
            ..TensorReport::default()
        }
    }
}

pub(crate) struct LayerTensors<'s, 'a> {
    stored: &'s mut StoredTensors<'a>,
    path: &'s ModulePath,
    dtype: DType,
    device: &'s Device,
}

impl TensorSource for LayerTensors<'_, '_> {
    fn tensor(&mut self, key: &'static str, shape: &[usize], _: Init<'_>) -> Result<Var> {
        self.stored.take(self.path.parameter(key), shape, self.dtype, self.device)
    }

    fn is_fresh(&self) -> bool {
        false
    }
}
