//! The keys of an adapter without a model, by layers.

use std::collections::BTreeMap;

use super::StoredAdapter;
use crate::adapter::StoredTensor;
use crate::path::ModulePath;
use crate::store::bare_parameters::{BareParameter, BareParameters};

impl StoredAdapter {
    /// The keys of parameters of the base model, and of layers that train in full.
    pub(in crate::store) fn parameter_keys(&self) -> impl Iterator<Item = &str> {
        self.keys().into_iter().filter(|key| self.split_key(key).is_none())
    }

    /// A key taken apart into the path of the layer and the end that names the tensor; `None` for a parameter of a module.
    fn split_key<'k>(&self, key: &'k str) -> Option<(&'k str, &'k str)> {
        let (path, end) = self.method().split_key(key)?;
        let (module, _) = key.rsplit_once('.')?;
        // A module that trains in full may be called like the end of a key.
        let module = ModulePath::from(module);
        let copied = self.method().selection().modules_to_save;
        let may_be_copy = module.as_str() != path && copied.iter().any(|name| module.ends_with(name));
        // An adapter has other tensors on the layer.
        let is_other = |other: &&str| {
            *other != key && self.method().split_key(other).is_some_and(|(layer, _)| layer == path)
        };
        (!may_be_copy || self.keys().iter().any(is_other)).then_some((path, end))
    }

    /// The keys without the prefix.
    pub(in crate::store) fn keys(&self) -> Vec<&str> {
        self.contents.keys()
    }

    /// The shape of the tensor at `key`, a key without the prefix.
    pub(in crate::store) fn shape(&self, key: &str) -> Option<&[usize]> {
        self.contents.shape(key)
    }

    /// The tensor at `key`, a key without the prefix.
    pub(in crate::store) fn stored_at(&self, key: &str) -> Option<StoredTensor<'_>> {
        self.contents.stored_at(key)
    }

    /// The dtype of the tensor at `key`, a key without the prefix.
    pub(in crate::store) fn dtype(&self, key: &str) -> Option<safetensors::Dtype> {
        self.contents.dtype(key)
    }

    /// The layers that the adapter is on, each with the ends of its keys.
    pub(in crate::store) fn layer_keys(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut layers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (path, end) in self.keys().into_iter().filter_map(|key| self.split_key(key)) {
            layers.entry(path).or_default().push(end);
        }
        layers
    }

    /// The bare parameter whose adapter has keys that begin with `stem`, if it is one of one.
    pub(in crate::store) fn parameter(&self, stem: &str) -> Option<&BareParameter> {
        self.parameters.get(stem)
    }

    /// The bare parameters that it is on, by the stems of their keys, where the base model is known.
    pub(in crate::store) fn parameters(&self) -> &BareParameters {
        &self.parameters
    }
}
