//! What the keys of a state dict say about the adapter they belong to.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Result, StateDictError};

/// The keys of one adapter, split into their parts.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct KeyedShapes<'k> {
    /// The layers, each with the ends of its keys and their shapes.
    pub layers: BTreeMap<&'k str, BTreeMap<&'k str, &'k [usize]>>,
    /// The modules whose full parameters are present.
    pub modules: BTreeSet<String>,
}

/// The module of which the key names the original that a copy stands in for, if the key goes on below it.
fn copied_container(key: &str) -> Option<&str> {
    let (module, rest) = key.split_once(".original_module.")?;
    rest.contains('.').then_some(module)
}

impl<'k> KeyedShapes<'k> {
    /// Splits keys with `split`, which gives the path of a layer and the end of the key, or nothing for a key that is not the
    /// method's; `prefix`, such as `lora_`, is how those ends begin.
    ///
    /// # Errors
    /// If no key is the method's.
    pub fn new(
        shapes: &BTreeMap<&'k str, &'k [usize]>,
        prefix: &str,
        split: impl Fn(&'k str) -> Option<(&'k str, &'k str)>,
    ) -> Result<Self> {
        let mut keyed = Self::default();
        for (key, shape) in shapes {
            if let Some((path, end)) = split(key) {
                // Others, such as rows of tokens, say nothing about the layers that the method itself is on.
                if end.starts_with(prefix) {
                    keyed.layers.entry(path).or_default().insert(end, shape);
                }
            } else if let Some(module) =
                key.strip_suffix(".weight").filter(|module| !module.ends_with(".base_layer"))
            {
                // A bias on its own belongs to the base model, where it is trained too.
                keyed.modules.insert(module.to_owned());
            }
        }
        // PEFT names the module that is copied where biases train, too.
        for module in shapes.keys().filter_map(|key| copied_container(key)) {
            let inside = |other: &String| {
                other.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            keyed.modules.retain(|other| !inside(other));
            keyed.modules.insert(module.to_owned());
        }
        if keyed.layers.is_empty() {
            let marker = format!(".{prefix}");
            let first = shapes.keys().next().map(|key| (*key).to_owned());
            return Err(StateDictError::NoAdapterKeys { marker, first }.into());
        }
        Ok(keyed)
    }

    /// The size of a dimension of the tensor that each layer has under one of these keys.
    pub fn sizes(&self, keys: &[&str], dimension: usize) -> BTreeMap<&'k str, usize> {
        let size = |shapes: &BTreeMap<&str, &[usize]>| {
            keys.iter().find_map(|key| shapes.get(key)?.get(dimension).copied())
        };
        self.layers.iter().filter_map(|(path, shapes)| Some((*path, size(shapes)?))).collect()
    }

    /// Whether any layer has a tensor under this key.
    pub fn any(&self, key: &str) -> bool {
        self.layers.values().any(|shapes| shapes.contains_key(key))
    }

    /// The paths of the layers.
    pub fn paths(&self) -> impl Iterator<Item = &'k str> {
        self.layers.keys().copied()
    }
}
