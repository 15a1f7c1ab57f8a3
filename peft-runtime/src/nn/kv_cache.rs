//! The caches of `candle_nn::kv_cache`, which keep the graph.
//!
//! candle's caches detach what is appended or write it in place, so that keys and values do not train. These have the same names and methods,
//! except for `Cache::all_data`.
//! What is not part of a graph, as under [`no_grad`](crate::no_grad), is written in place as in candle.

use candle_core::{Result, Tensor};

/// Keys or values of all positions so far.
#[derive(Debug, Clone)]
pub struct Cache {
    /// Written in place, as long as nothing is part of a graph.
    plain: candle_nn::kv_cache::Cache,
    /// All positions, once something is.
    graph: Option<Tensor>,
}

impl Cache {
    /// An empty cache that grows along dimension `dim`, by `max_seq_len` positions at a time.
    pub fn new(dim: usize, max_seq_len: usize) -> Self {
        Self { plain: candle_nn::kv_cache::Cache::new(dim, max_seq_len), graph: None }
    }

    /// The dimension of positions.
    pub fn dim(&self) -> usize {
        self.plain.dim()
    }

    /// How many positions it holds.
    pub fn current_seq_len(&self) -> usize {
        let of = |tensor: &Tensor| tensor.dims().get(self.dim()).copied();
        self.graph.as_ref().map_or(Some(self.plain.current_seq_len()), of).unwrap_or(0)
    }

    /// How many positions it holds without growing.
    pub fn max_seq_len(&self) -> usize {
        self.plain.max_seq_len().max(self.current_seq_len())
    }

    /// All positions it holds; `None` if it is empty.
    ///
    /// # Errors
    /// If candle cannot make the view.
    pub fn current_data(&self) -> Result<Option<Tensor>> {
        match &self.graph {
            Some(all) => Ok(Some(all.clone())),
            None => self.plain.current_data(),
        }
    }

    /// Forgets all positions.
    pub fn reset(&mut self) {
        self.plain.reset();
        self.graph = None;
    }

    /// Adds positions at the end.
    ///
    /// # Errors
    /// If the shape of `src` does not fit; then the cache is as it was.
    pub fn append(&mut self, src: &Tensor) -> Result<()> {
        if self.graph.is_none() && !src.track_op() {
            return self.plain.append(&src.contiguous()?);
        }
        let all = match self.current_data()? {
            Some(before) => Tensor::cat(&[&before, src], self.dim())?,
            None => src.clone(),
        };
        self.graph = Some(all);
        Ok(())
    }
}

/// Keys and values of all positions so far.
#[derive(Debug, Clone)]
pub struct KvCache {
    k: Cache,
    v: Cache,
}

impl KvCache {
    /// Empty caches that grow along dimension `dim`, by `max_seq_len` positions at a time.
    pub fn new(dim: usize, max_seq_len: usize) -> Self {
        Self { k: Cache::new(dim, max_seq_len), v: Cache::new(dim, max_seq_len) }
    }

    /// The keys.
    pub fn k_cache(&self) -> &Cache {
        &self.k
    }

    /// The values.
    pub fn v_cache(&self) -> &Cache {
        &self.v
    }

    /// The keys, to change.
    pub fn k_cache_mut(&mut self) -> &mut Cache {
        &mut self.k
    }

    /// The values, to change.
    pub fn v_cache_mut(&mut self) -> &mut Cache {
        &mut self.v
    }

    /// All keys; `None` if there are none.
    ///
    /// # Errors
    /// If candle cannot make the view.
    pub fn k(&self) -> Result<Option<Tensor>> {
        self.k.current_data()
    }

    /// All values; `None` if there are none.
    ///
    /// # Errors
    /// If candle cannot make the view.
    pub fn v(&self) -> Result<Option<Tensor>> {
        self.v.current_data()
    }

    /// Adds keys and values at the end, and returns all of them.
    ///
    /// # Errors
    /// If the shapes do not fit; then the cache is as it was.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let before = self.k.clone();
        self.k.append(k)?;
        if let Err(error) = self.v.append(v) {
            self.k = before;
            return Err(error);
        }
        let (all_k, all_v) = (self.k()?, self.v()?);
        Ok((all_k.unwrap_or_else(|| k.clone()), all_v.unwrap_or_else(|| v.clone())))
    }

    /// How many positions it holds.
    pub fn current_seq_len(&self) -> usize {
        self.k.current_seq_len()
    }

    /// Forgets all positions.
    pub fn reset(&mut self) {
        self.k.reset();
        self.v.reset();
    }
}

/// Keys and values of all positions so far, copied together at each step.
#[derive(Debug, Clone)]
pub struct ConcatKvCache {
    k: Option<Tensor>,
    v: Option<Tensor>,
    dim: usize,
}

impl ConcatKvCache {
    /// An empty cache whose positions are dimension `dim`: 2 for `[batch, heads, length, size]`.
    pub fn new(dim: usize) -> Self {
        Self { k: None, v: None, dim }
    }

    /// How many positions it holds.
    pub fn current_seq_len(&self) -> usize {
        self.k.as_ref().and_then(|k| k.dims().get(self.dim).copied()).unwrap_or(0)
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.k.is_none()
    }

    /// The dimension of positions.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Adds keys and values at the end, and returns all of them.
    ///
    /// # Errors
    /// If the shapes do not fit; then the cache is as it was.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let joined = |before: &Option<Tensor>, new: &Tensor| match before {
            Some(before) => Tensor::cat(&[before, new], self.dim),
            None => new.contiguous(),
        };
        let (k, v) = (joined(&self.k, k)?, joined(&self.v, v)?);
        (self.k, self.v) = (Some(k.clone()), Some(v.clone()));
        Ok((k, v))
    }

    /// Forgets all positions.
    pub fn reset(&mut self) {
        (self.k, self.v) = (None, None);
    }

    /// All keys; `None` if there are none.
    pub fn k(&self) -> Option<&Tensor> {
        self.k.as_ref()
    }

    /// All values; `None` if there are none.
    pub fn v(&self) -> Option<&Tensor> {
        self.v.as_ref()
    }

    /// All keys, to change; `None` if there are none.
    pub fn k_mut(&mut self) -> Option<&mut Tensor> {
        self.k.as_mut()
    }

    /// All values, to change; `None` if there are none.
    pub fn v_mut(&mut self) -> Option<&mut Tensor> {
        self.v.as_mut()
    }

    /// All keys and values; `None` if there are none.
    pub fn into_inner(self) -> Option<(Tensor, Tensor)> {
        self.k.zip(self.v)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor, Var};

    use super::{Cache, ConcatKvCache, KvCache};
    use crate::ops::testing::{assert_close, random, random_variable};

    /// Three steps of different lengths, `[2, length, 3]`.
    fn steps() -> [Tensor; 3] {
        [random("a", &[2, 4, 3]), random("b", &[2, 1, 3]), random("c", &[2, 2, 3])]
    }

    #[test]
    fn every_cache_returns_all_positions_in_order() {
        let (steps, mut concat) = (steps(), ConcatKvCache::new(1));
        let mut cache = KvCache::new(1, 3);
        assert!(concat.is_empty() && cache.k().unwrap().is_none());
        for count in 1..=3 {
            let new = &steps[count - 1];
            let expected = Tensor::cat(&steps[..count], 1).unwrap();
            let double = (new * 2.0).unwrap();
            for (k, v) in [cache.append(new, &double).unwrap(), concat.append(new, &double).unwrap()] {
                assert_close(&k, &expected, 0.0, "keys");
                assert_close(&v, &(&expected * 2.0).unwrap(), 0.0, "values");
            }
            assert_eq!(cache.current_seq_len(), expected.dim(1).unwrap());
            assert_eq!(concat.current_seq_len(), expected.dim(1).unwrap());
        }
        cache.reset();
        concat.reset();
        assert_eq!((cache.current_seq_len(), concat.current_seq_len()), (0, 0));
    }

    #[test]
    fn gradients_go_back_to_every_step_also_after_steps_without_a_graph() {
        let first = random("first", &[2, 4, 3]);
        let parts: [Var; 2] = ["b", "c"].map(|name| random_variable(DType::F64, name, &[2, 2, 3]));
        let weight = random("weight", &[2, 8, 3]);
        let mut caches = (Cache::new(1, 4), ConcatKvCache::new(1));
        caches.0.append(&first).unwrap();
        caches.1.append(&first, &first).unwrap();
        for part in &parts {
            caches.0.append(part).unwrap();
            caches.1.append(part, part).unwrap();
        }
        let all = caches.0.current_data().unwrap().unwrap();
        for all in [&all, caches.1.k().unwrap(), caches.1.v().unwrap()] {
            let grads = (all * &weight).unwrap().sum_all().unwrap().backward().unwrap();
            for (place, part) in parts.iter().enumerate() {
                let expected = weight.narrow(1, 4 + 2 * place, 2).unwrap();
                assert_close(grads.get(part).unwrap(), &expected, 1e-12, "the gradient of a step");
            }
        }
    }

    #[test]
    fn a_step_that_does_not_fit_leaves_the_cache_as_it_was() {
        let (mut cache, mut concat) = (KvCache::new(1, 4), ConcatKvCache::new(1));
        let (good, bad) = (random("good", &[2, 2, 3]), random("bad", &[2, 2, 4]));
        cache.append(&good, &good).unwrap();
        concat.append(&good, &good).unwrap();
        assert!(cache.append(&good, &bad).is_err());
        assert!(concat.append(&good, &bad).is_err());
        assert_eq!((cache.current_seq_len(), concat.current_seq_len()), (2, 2));
    }
}
