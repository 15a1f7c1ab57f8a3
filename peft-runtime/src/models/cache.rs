//! Keys and values of the tokens that a model has seen.

use candle_core::{Result, Tensor, bail};
use candle_nn::kv_cache::KvCache as LayerCache;

/// How many tokens a layer's cache has room for at first, and by how many it grows.
const ROOM: usize = 256;

/// The keys and values of every attention layer, for continuing a batch of sequences token by token.
///
/// After a failed call, [`reset`](Self::reset) the cache: some layers may have more tokens than others.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use peft_runtime::models::generate::KvCache;
///
/// let mut cache = KvCache::new(1);
/// let new = Tensor::zeros((1, 3, 2, 8), DType::F32, &Device::Cpu)?;
/// cache.append(0, &new, &new)?;
/// let (keys, values) = cache.append(0, &new, &new)?;
/// assert_eq!((keys.dims(), values.dims()), ([1, 6, 2, 8].as_slice(), [1, 6, 2, 8].as_slice()));
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

impl KvCache {
    /// An empty cache for a model with this many attention layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| LayerCache::new(1, ROOM)).collect() }
    }

    /// How many tokens it holds.
    pub fn length(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::current_seq_len)
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.layers.iter_mut().for_each(LayerCache::reset);
    }

    /// Adds the keys and values of new tokens to a layer, `[batch, new, heads, head size]`, and returns those of all its
    /// tokens, `[batch, tokens, heads, head size]`. No gradient reaches any of them.
    ///
    /// # Errors
    /// If there is no such layer, or the shapes do not fit what it holds.
    pub fn append(&mut self, layer: usize, key: &Tensor, value: &Tensor) -> Result<(Tensor, Tensor)> {
        let count = self.layers.len();
        match self.layers.get_mut(layer) {
            Some(cache) => cache.append(&key.detach().contiguous()?, &value.detach().contiguous()?),
            None => bail!("a cache for {count} attention layers has none with the index {layer}"),
        }
    }
}
