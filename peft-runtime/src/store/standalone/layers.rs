//! What an adapter has on each layer, and how large its updates are and how much they differ.

use std::fmt;

use candle_core::{Device, Result as CandleResult, Tensor};

use super::StoredAdapter;
use super::skeleton::{Skeleton, split_parameter};
use super::update::Update;
use crate::adapter::LowRank;
use crate::error::{Error, Result};
use crate::layer::{Content, Slot};
use crate::module::leaves;
use crate::path::ModulePath;

/// What an adapter has on one layer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoredLayer {
    /// The layer's path.
    pub path: ModulePath,
    /// What kind of tensors they are.
    pub kind: StoredKind,
    /// The rank, if the method has one.
    pub rank: Option<usize>,
    /// The scaling of the update, if the method has one: alpha / rank, for example.
    pub scaling: Option<f64>,
    /// The tensors by the ends of their keys, such as `lora_A.weight`.
    pub tensors: Vec<(String, Tensor)>,
    /// The factors of the update as matrices `[rank, in]` and `[out, rank]`, where the update is a low-rank matrix.
    pub update: Option<LowRank>,
    /// The update as a matrix, where it is not one of low rank.
    dense_update: Option<Tensor>,
}

/// The kinds of tensors that an adapter's file has for a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoredKind {
    /// What a method has on the layer, under the method's own name: `LoRA`, `DoRA`, `tokens`.
    Adapter(&'static str),
    /// All parameters, trained in full.
    Copy,
    /// Parameters of the base model, which are replaced.
    Base,
}

impl fmt::Display for StoredKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Adapter(label) => label,
            Self::Copy => "full copy",
            Self::Base => "base",
        })
    }
}

/// The name of a skeleton's only adapter.
pub(super) const NAME: &str = "default";

impl StoredAdapter {
    /// What the adapter has on every layer, numbered layers in numerical order.
    ///
    /// # Errors
    /// If the tensors do not fit the config.
    pub fn layers(&self) -> Result<Vec<StoredLayer>> {
        let mut skeleton = Skeleton::of(&[self], None)?;
        skeleton.load(self, self.explicit_method().without_base().as_ref(), NAME)?;
        let mut layers = Vec::new();
        for (path, leaf) in leaves(&skeleton) {
            let Some(slot) = leaf.stack().and_then(|stack| stack.slot(NAME)) else { continue };
            layers.push(of_slot(path.clone(), slot).map_err(Error::on_layer(&path))?);
        }
        let base = self.base_layers(&layers)?;
        layers.extend(base);
        Ok(layers)
    }

    /// The parameters of the base model that the file has, except those of layers that train in full.
    fn base_layers(&self, known: &[StoredLayer]) -> Result<Vec<StoredLayer>> {
        let is_copy = |path: &ModulePath| {
            known.iter().any(|layer| layer.kind == StoredKind::Copy && layer.path == *path)
        };
        let mut base: Vec<StoredLayer> = Vec::new();
        for key in self.parameter_keys() {
            let Some((path, name)) = split_parameter(key).filter(|(path, _)| !is_copy(path)) else {
                continue;
            };
            let Some(stored) = self.stored_at(key) else { continue };
            let tensor = (stored.read)(&Device::Cpu).map_err(Error::on_layer(&path))?;
            let tensor = (name.to_owned(), tensor);
            match base.iter_mut().find(|layer| layer.path == path) {
                Some(layer) => layer.tensors.push(tensor),
                None => base.push(StoredLayer {
                    path,
                    kind: StoredKind::Base,
                    rank: None,
                    scaling: None,
                    tensors: vec![tensor],
                    update: None,
                    dense_update: None,
                }),
            }
        }
        Ok(base)
    }
}

fn of_slot(path: ModulePath, slot: &Slot) -> CandleResult<StoredLayer> {
    let adapter = match &slot.content {
        Content::Adapter(adapter) => adapter.as_ref(),
        Content::Copy(copies) => {
            let tensors =
                copies.iter().map(|copy| (copy.name.to_owned(), copy.var.as_detached_tensor())).collect();
            let kind = StoredKind::Copy;
            let (rank, scaling, update, dense_update) = (None, None, None, None);
            return Ok(StoredLayer { path, kind, rank, scaling, tensors, update, dense_update });
        }
    };
    let stored = adapter.tensors().into_iter().filter(|tensor| tensor.stored);
    let tensors = stored.map(|tensor| Ok((tensor.key.to_owned(), adapter.stored_tensor(&tensor)?)));
    let tensors = tensors.collect::<CandleResult<Vec<_>>>()?;
    let (kind, rank) = (StoredKind::Adapter(adapter.label()), adapter.rank());
    let update = adapter.low_rank_update()?;
    let dense_update = if update.is_some() { None } else { adapter.dense_update()? };
    let scaling = update.as_ref().map(|update| update.scaling).or_else(|| adapter.scaling());
    Ok(StoredLayer { path, kind, rank, scaling, tensors, update, dense_update })
}

impl StoredLayer {
    /// The number of elements in its tensors.
    pub fn elements(&self) -> usize {
        self.tensors.iter().map(|(_, tensor)| tensor.elem_count()).sum()
    }

    /// The tensor whose key ends in `key`.
    pub fn tensor(&self, key: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|(known, _)| known == key).map(|(_, tensor)| tensor)
    }

    /// The Frobenius norm of the update, where it is a matrix; for DoRA, the norm before the magnitudes are applied.
    ///
    /// # Errors
    /// If the device reports an error.
    pub fn update_norm(&self) -> Result<Option<f64>> {
        let norm = self.own_update().map(|update| update.norm()).transpose();
        norm.map_err(Error::on_layer(&self.path))
    }

    /// The Frobenius norm of the difference between two updates, and the cosine of the angle between them; `None` if
    /// they are not matrices of the same shape.
    ///
    /// # Errors
    /// If the device reports an error.
    pub fn update_difference(&self, other: &Self) -> Result<Option<(f64, f64)>> {
        let (Some(a), Some(b)) = (self.own_update(), other.own_update()) else { return Ok(None) };
        a.difference(&b).map_err(Error::on_layer(&self.path))
    }

    fn own_update(&self) -> Option<Update<'_>> {
        let low_rank = self.update.as_ref().map(Update::LowRank);
        low_rank.or_else(|| self.dense_update.as_ref().map(Update::Dense))
    }
}
