//! Adapters as plain LoRA: for the original base model, with their scaling in the factors.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, bail};

use super::layers::NAME;
use super::skeleton::Skeleton;
use super::{BaseWeights, StoredAdapter};
use crate::adapter::PlainFactors;
use crate::error::{Error, Result};
use crate::layer::Slot;
use crate::module::leaves;
use crate::path::ModulePath;
use crate::store::keys::with_prefix;

/// A layer's factors, and the ends of the keys that it has now.
struct PlainLayer {
    path: ModulePath,
    factors: PlainFactors,
    keys: Vec<&'static str>,
}

impl StoredAdapter {
    /// The adapter as plain LoRA, which every reader of LoRA accepts: alpha is the rank, and the true scaling of each
    /// layer is in its B.
    ///
    /// AdaLoRA's singular values go into A. An adapter whose init changed the base weights (PiSSA, OLoRA, LoftQ) gets
    /// twice the rank and is then for the original base model, which must be given; with LoftQ the result is exact
    /// only at full rank with alpha equal to the rank. Tensors other than the factors stay as they are.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for adapters that are not low-rank updates, and where the base model is needed but not
    /// given.
    pub fn to_plain_lora(&self, base: Option<&BaseWeights>) -> Result<Self> {
        self.plain(base, false)
    }

    /// The adapter as [`plain LoRA`](Self::to_plain_lora) with one rank for all layers, the largest that one has: the other
    /// factors are padded with zeros. Readers that know neither patterns of ranks nor of alphas compute the same with it.
    ///
    /// # Errors
    /// As [`to_plain_lora`](Self::to_plain_lora); and if a convolution in groups has another rank than the rest.
    pub fn to_uniform_lora(&self, base: Option<&BaseWeights>) -> Result<Self> {
        self.plain(base, true)
    }

    fn plain(&self, base: Option<&BaseWeights>, uniform: bool) -> Result<Self> {
        let refused = |reason| {
            let adapter = self.name().to_owned();
            Error::Unsupported { operation: "make plain LoRA of", adapter, reason }
        };
        self.method().check_plain_lora(base.is_some()).map_err(refused)?;
        if let Some((_, parameter)) = self.parameters().first_key_value() {
            let reason =
                format!("`{}` is a bare parameter, which only PEFT's own form can hold", parameter.path);
            return Err(refused(reason));
        }
        let mut layers = self.plain_layers(base)?;
        if uniform {
            let rank = layers.iter().filter_map(PlainLayer::rank).max().unwrap_or_default();
            for layer in &mut layers {
                layer.pad(rank).map_err(Error::on_layer(&layer.path))?;
            }
        }
        let ranks = layers.iter().filter_map(|layer| Some((layer.path.as_str(), layer.rank()?)));
        let ranks: BTreeMap<&str, usize> = ranks.collect();
        let no_form = || refused(format!("{} is not a low-rank update", self.method().name()));
        let method =
            if self.method().selection().ties { self.explicit_method() } else { self.method().share() };
        let plain = method.plain_lora(&ranks)?.ok_or_else(no_form)?;
        let mut tensors = self.tensors(&Device::Cpu)?;
        for layer in &layers {
            let rank = ranks.get(layer.path.as_str()).copied().unwrap_or_default().max(1);
            #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
            let scaling = plain.alpha / rank as f64;
            layer.put_into(&mut tensors, scaling).map_err(Error::on_layer(&layer.path))?;
        }
        Self::new(self.name(), plain.method, tensors)
    }

    fn plain_layers(&self, base: Option<&BaseWeights>) -> Result<Vec<PlainLayer>> {
        let mut skeleton = Skeleton::of(&[self], base)?;
        skeleton.load(self, self.explicit_method().as_ref(), NAME)?;
        let mut layers = Vec::new();
        for (path, leaf) in leaves(&skeleton) {
            let adapter = leaf.stack().and_then(|stack| stack.slot(NAME)).and_then(Slot::adapter);
            let Some(adapter) = adapter else { continue };
            let keys =
                adapter.tensors().iter().filter(|tensor| tensor.stored).map(|tensor| tensor.key).collect();
            if let Some(factors) = adapter.plain_factors().map_err(Error::on_layer(&path))? {
                layers.push(PlainLayer { path, factors, keys });
            }
        }
        Ok(layers)
    }
}

impl PlainLayer {
    fn rank(&self) -> Option<usize> {
        self.factors.a.1.dims().first().copied()
    }

    /// Gives the factors a larger rank with zeros, which changes nothing of their product.
    fn pad(&mut self, rank: usize) -> candle_core::Result<()> {
        let own = self.rank().unwrap_or_default();
        if own == rank {
            return Ok(());
        }
        let (a, b) = (&mut self.factors.a.1, &mut self.factors.b.1);
        if b.dim(1)? != own {
            bail!("a convolution in groups cannot have its rank {own} made {rank}")
        }
        *a = a.pad_with_zeros(0, 0, rank - own)?;
        *b = b.pad_with_zeros(1, 0, rank - own)?;
        Ok(())
    }

    /// Replaces what the layer had with the factors, divided by the scaling that readers apply.
    fn put_into(
        &self,
        tensors: &mut BTreeMap<String, Tensor>,
        readers_scaling: f64,
    ) -> candle_core::Result<()> {
        let key = |end: &str| with_prefix(&self.path.parameter(end));
        for end in &self.keys {
            tensors.remove(&key(end));
        }
        let PlainFactors { a, b, bias, scaling, restores } = &self.factors;
        if *restores {
            // The key holds what the init left of the weight; the plain adapter is for the whole weight.
            tensors.remove(&key("base_layer.weight"));
        }
        let scale = scaling / readers_scaling;
        tensors.insert(key(a.0), a.1.clone());
        tensors.insert(key(b.0), (&b.1 * scale)?);
        if let Some((end, bias)) = bias {
            tensors.insert(key(end), (bias * scale)?);
        }
        Ok(())
    }
}
