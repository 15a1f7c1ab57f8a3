//! What an adapter has on each layer, and how large and how different its updates are.

use std::fmt;

use candle_core::{DType, Result as CandleResult, Tensor};

use super::StoredAdapter;
use super::skeleton::{Skeleton, split_parameter};
use crate::ModulePath;
use crate::adapter::{Adapter, LowRank, split_layer_key};
use crate::config::{LoraInit, PeftConfig};
use crate::error::{Error, Result};
use crate::layer::{Content, Slot};
use crate::manage::is_finite;
use crate::module::leaves;
use crate::ops::decompose::qr;
use crate::ops::matmul::product;

/// What an adapter has on one layer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoredLayer {
    /// Where the layer is.
    pub path: ModulePath,
    /// What sort of tensors they are.
    pub kind: StoredKind,
    /// The rank, if the method has one.
    pub rank: Option<usize>,
    /// The factor of the update, if the method has one: alpha over rank, for example.
    pub scaling: Option<f64>,
    /// The tensors by the ends of their keys: `lora_A.weight`.
    pub tensors: Vec<(String, Tensor)>,
    /// The factors of the update as matrices `[rank, in]` and `[out, rank]`, where the update is a low-rank matrix.
    pub update: Option<LowRank>,
}

/// The sorts of tensors that an adapter's file has for a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoredKind {
    /// Two factors.
    Lora,
    /// Two factors and the lengths of the outputs.
    Dora,
    /// Two factors and singular values.
    AdaLora,
    /// A vector over the outputs or the inputs.
    Ia3,
    /// Rows of an embedding.
    Tokens,
    /// All parameters, trained in full.
    Copy,
    /// Parameters of the base model, which are replaced.
    Base,
}

impl fmt::Display for StoredKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lora => "LoRA",
            Self::Dora => "DoRA",
            Self::AdaLora => "AdaLoRA",
            Self::Ia3 => "IA3",
            Self::Tokens => "tokens",
            Self::Copy => "full copy",
            Self::Base => "base",
        })
    }
}

/// The name of the one adapter of a skeleton.
pub(super) const NAME: &str = "default";

impl StoredAdapter {
    /// What the adapter has on every layer, numbered layers in order.
    ///
    /// # Errors
    /// If the tensors do not fit the config.
    pub fn layers(&self) -> Result<Vec<StoredLayer>> {
        let mut skeleton = Skeleton::of(&[self], None)?;
        skeleton.load(self, &without_base(self.explicit_config()), NAME)?;
        let mut layers = Vec::new();
        for (path, leaf) in leaves(&skeleton) {
            let Some(slot) = leaf.stack().and_then(|stack| stack.slot(NAME)) else { continue };
            layers.push(of_slot(path.clone(), slot).map_err(Error::on_layer(&path))?);
        }
        let base = self.base_layers(&layers)?;
        layers.extend(base);
        Ok(layers)
    }

    /// The parameters of the base model that the file has, without those of layers that train in full.
    fn base_layers(&self, known: &[StoredLayer]) -> Result<Vec<StoredLayer>> {
        let is_copy = |path: &str| {
            known.iter().any(|layer| layer.kind == StoredKind::Copy && layer.path.as_str() == path)
        };
        let mut base: Vec<StoredLayer> = Vec::new();
        for key in self.keys().into_iter().filter(|key| split_layer_key(key).is_none()) {
            let Some((path, name)) = split_parameter(key).filter(|(path, _)| !is_copy(path)) else {
                continue;
            };
            let Some(stored) = self.stored_at(key) else { continue };
            let path = ModulePath::from(path);
            let tensor = (stored.read)(&candle_core::Device::Cpu).map_err(Error::on_layer(&path))?;
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
                }),
            }
        }
        Ok(base)
    }
}

/// The config without an init that has to see the base model's weights: a file's factors do not come from it.
fn without_base(config: PeftConfig) -> PeftConfig {
    match config {
        PeftConfig::Lora(config) if config.init().changes_base() => {
            PeftConfig::Lora(config.with_init(LoraInit::Default))
        }
        other => other,
    }
}

fn of_slot(path: ModulePath, slot: &Slot) -> CandleResult<StoredLayer> {
    let adapter = match &slot.content {
        Content::Adapter(adapter) => adapter.as_ref(),
        Content::Copy(copies) => {
            let tensors =
                copies.iter().map(|copy| (copy.name.to_owned(), copy.var.as_detached_tensor())).collect();
            let (kind, rank, scaling, update) = (StoredKind::Copy, None, None, None);
            return Ok(StoredLayer { path, kind, rank, scaling, tensors, update });
        }
    };
    let stored = adapter.tensors().into_iter().filter(|tensor| tensor.stored);
    let tensors = stored.map(|tensor| Ok((tensor.key.to_owned(), adapter.stored_tensor(&tensor)?)));
    let tensors = tensors.collect::<CandleResult<Vec<_>>>()?;
    let (kind, rank, update) = describe(adapter)?;
    let scaling = update.as_ref().map(|update| update.scaling).or_else(|| adapter.scaling());
    Ok(StoredLayer { path, kind, rank, scaling, tensors, update })
}

fn describe(adapter: &dyn Adapter) -> CandleResult<(StoredKind, Option<usize>, Option<LowRank>)> {
    if let Some(lora) = adapter.as_lora() {
        let kind = if lora.has_lengths() { StoredKind::Dora } else { StoredKind::Lora };
        return Ok((kind, Some(lora.rank()), lora.matrices()?));
    }
    if let Some(adalora) = adapter.as_adalora() {
        return Ok((StoredKind::AdaLora, Some(adalora.rank()), adalora.matrices()?));
    }
    let kind = if adapter.as_ia3().is_some() { StoredKind::Ia3 } else { StoredKind::Tokens };
    Ok((kind, None, None))
}

impl StoredLayer {
    /// The number of elements of its tensors.
    pub fn elements(&self) -> usize {
        self.tensors.iter().map(|(_, tensor)| tensor.elem_count()).sum()
    }

    /// The tensor whose key ends in `key`.
    pub fn tensor(&self, key: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|(known, _)| known == key).map(|(_, tensor)| tensor)
    }

    /// The Frobenius norm of the update, where it is a low-rank matrix; DoRA's is that of the update before the lengths.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn update_norm(&self) -> Result<Option<f64>> {
        let norm = self.update.as_ref().map(|update| norm(&[(update, 1.0)])).transpose();
        norm.map_err(Error::on_layer(&self.path))
    }

    /// The Frobenius norm of the difference of two updates, and the cosine of the angle between them; `None` if they are
    /// no matrices of one shape.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn update_difference(&self, other: &Self) -> Result<Option<(f64, f64)>> {
        let (Some(a), Some(b)) = (&self.update, &other.update) else { return Ok(None) };
        difference(a, b).map_err(Error::on_layer(&self.path))
    }
}

/// The Frobenius norm of `Σ factor · s · B · A`, by way of triangular factors: equal updates cancel to nothing.
fn norm(terms: &[(&LowRank, f64)]) -> CandleResult<f64> {
    let wide = |tensor: &Tensor| tensor.detach().to_dtype(DType::F64);
    let a = terms.iter().map(|(term, _)| wide(&term.a)).collect::<CandleResult<Vec<_>>>()?;
    let b = terms.iter().map(|(term, factor)| wide(&term.b)? * (term.scaling * factor));
    let b = b.collect::<CandleResult<Vec<_>>>()?;
    let (a, b) = (Tensor::cat(&a, 0)?, Tensor::cat(&b, 1)?);
    if a.elem_count() == 0 || b.elem_count() == 0 {
        return Ok(0.0);
    }
    if !is_finite(&a)? || !is_finite(&b)? {
        return Ok(f64::NAN);
    }
    let (_, left) = qr(&b)?;
    let (_, right) = qr(&a.t()?.contiguous()?)?;
    product(&left, &right.t()?, 1.0)?.sqr()?.sum_all()?.sqrt()?.to_scalar()
}

fn difference(a: &LowRank, b: &LowRank) -> CandleResult<Option<(f64, f64)>> {
    let same_shape = a.a.dim(1)? == b.a.dim(1)? && a.b.dim(0)? == b.b.dim(0)?;
    if !same_shape {
        return Ok(None);
    }
    let distance = norm(&[(a, 1.0), (b, -1.0)])?;
    let lengths = norm(&[(a, 1.0)])? * norm(&[(b, 1.0)])?;
    if lengths == 0.0 {
        return Ok(Some((distance, if distance == 0.0 { 1.0 } else { 0.0 })));
    }
    let wide = |tensor: &Tensor| tensor.detach().to_dtype(DType::F64);
    // ⟨B₁A₁, B₂A₂⟩ = Σ (B₁ᵀB₂) ⊙ (A₁A₂ᵀ)
    let outputs = product(&wide(&a.b)?.t()?, &wide(&b.b)?, a.scaling * b.scaling)?;
    let inputs = product(&wide(&a.a)?, &wide(&b.a)?.t()?, 1.0)?;
    let inner: f64 = (outputs * inputs)?.sum_all()?.to_scalar()?;
    Ok(Some((distance, (inner / lengths).clamp(-1.0, 1.0))))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::{difference, norm};
    use crate::adapter::LowRank;

    fn random(shape: (usize, usize)) -> Tensor {
        Tensor::randn(0f64, 1., shape, &Device::Cpu).unwrap()
    }

    fn dense(terms: &LowRank) -> Tensor {
        (terms.b.matmul(&terms.a).unwrap() * terms.scaling).unwrap()
    }

    fn length(matrix: &Tensor) -> f64 {
        matrix.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
    }

    #[test]
    fn norms_are_those_of_the_dense_matrices() {
        let first = LowRank { a: random((2, 7)), b: random((5, 2)), scaling: 1.5 };
        let second = LowRank { a: random((3, 7)), b: random((5, 3)), scaling: -0.5 };
        assert!((norm(&[(&first, 1.0)]).unwrap() - length(&dense(&first))).abs() < 1e-9);
        let (distance, cosine) = difference(&first, &second).unwrap().unwrap();
        let apart = (dense(&first) - dense(&second)).unwrap();
        assert!((distance - length(&apart)).abs() < 1e-9);
        let inner: f64 = (dense(&first) * dense(&second)).unwrap().sum_all().unwrap().to_scalar().unwrap();
        assert!((cosine - inner / length(&dense(&first)) / length(&dense(&second))).abs() < 1e-9);
        let (distance, cosine) = difference(&first, &first.clone()).unwrap().unwrap();
        assert!(distance < 1e-12 && (cosine - 1.0).abs() < 1e-9, "{distance} {cosine}");
    }
}
