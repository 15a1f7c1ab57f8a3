//! Which tensor a key means, whatever was around the model when it was written.
//!
//! PEFT's files have one key for a tensor. The state dicts of whole models, and the files of trainers that write them, also have the
//! adapter's name in a key, wrappers of the model, and a module that trains in full several times.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::adapter::AdapterMethod;
use crate::config::Bias;
use crate::error::{Error, Result, StateDictError};
use crate::module::{Injectable, leaves};
use crate::store::keys::{PREFIX, two_names};

/// Whether a model has a layer at a path.
pub(in crate::store) type IsLayer<'m> = &'m dyn Fn(&str) -> bool;

/// Wrappers under names that no module of a model has.
const TRANSPARENT: [&str; 4] =
    ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"];
/// What data-parallel training puts before every path.
const PARALLEL: &str = "module.";
/// PEFT's two wrapper levels inside of a path.
const INNER_PREFIX: &str = ".base_model.model.";
/// Where PEFT has the copy of a module that trains in full, from the module's path.
const COPY: &str = "modules_to_save";
/// Where PEFT has the base model's own module next to the copy.
const ORIGINAL: &str = "original_module";
/// The names of parameters of layers, which no adapter is called in a key.
const PARAMETERS: [&str; 2] = ["weight", "bias"];

/// The paths of a model's layers.
pub(in crate::store) fn layer_paths<M: Injectable + ?Sized>(model: &M) -> BTreeSet<String> {
    leaves(model).iter().map(|(path, _)| path.as_str().to_owned()).collect()
}

/// Where a key has its tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At the path of its layer.
    Own,
    /// In PEFT's copy of a module that trains in full.
    Copy,
    /// In the base model's own module next to such a copy.
    Original,
    /// In a buffer that says nothing about the adapter.
    Inert,
}

/// What a key says.
#[derive(Debug, PartialEq)]
struct Reading {
    /// The one key of the tensor.
    key: String,
    place: Place,
    /// The adapter's name, if the key has it.
    adapter: Option<String>,
}

/// The keys of an adapter, each under its one name.
#[derive(Debug, Default)]
pub(in crate::store) struct CanonicalKeys {
    /// The keys as they were found, by the tensor's one key.
    pub(in crate::store) found: BTreeMap<String, String>,
    /// The keys that say nothing more than others do: the base model's own values next to a full copy, and the copy once more.
    pub(in crate::store) superseded: Vec<String>,
}

/// Reads keys for a method and, where it is known, for a model.
#[derive(Clone, Copy)]
pub(in crate::store) struct KeyReader<'r> {
    pub(in crate::store) method: &'r dyn AdapterMethod,
    /// Whether the model has a layer at a path; `None` without a model.
    pub(in crate::store) is_layer: Option<IsLayer<'r>>,
}

impl KeyReader<'_> {
    /// The keys under their one names.
    ///
    /// A module that trains in full may be there as `X.weight`, as `X.modules_to_save.weight`, with or without the adapter's
    /// name in it, and with `X.original_module.weight` next to it. `X.weight` counts, as in PEFT, then the copy; the original
    /// is the base model's, which has it.
    ///
    /// # Errors
    /// If two keys mean the same tensor, or belong to adapters of different names.
    pub(in crate::store) fn read_all<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k str>,
    ) -> Result<CanonicalKeys> {
        let mut tensors: BTreeMap<String, (Place, &str)> = BTreeMap::new();
        let mut superseded = Vec::new();
        let mut named: Option<(String, &str)> = None;
        for found in keys {
            let Reading { key, place, adapter } = self.read(found);
            match (&named, adapter) {
                (Some((name, first)), Some(other)) if *name != other => {
                    return Err(several_adapters((first, name), (found, &other)));
                }
                (None, Some(name)) => named = Some((name, found)),
                _ => {}
            }
            match tensors.get(&key) {
                _ if place == Place::Inert => superseded.push(found.to_owned()),
                Some((Place::Own, _)) if place == Place::Copy => superseded.push(found.to_owned()),
                Some((Place::Copy, copy)) if place == Place::Own => {
                    superseded.push((*copy).to_owned());
                    tensors.insert(key, (place, found));
                }
                Some((_, other)) => return Err(two_names(other, found)),
                None => {
                    tensors.insert(key, (place, found));
                }
            }
        }
        let originals: Vec<String> =
            tensors.keys().filter(|key| self.repeats_base(key, &tensors)).cloned().collect();
        let originals = originals.iter().filter_map(|key| tensors.remove(key));
        superseded.extend(originals.map(|(_, found)| found.to_owned()));
        superseded.sort();
        let found = tensors.into_iter().map(|(key, (_, found))| (key, found.to_owned())).collect();
        Ok(CanonicalKeys { found, superseded })
    }

    /// Whether the key is that of a value of the base model next to a full copy, which is not one that trained along.
    fn repeats_base(&self, key: &str, tensors: &BTreeMap<String, (Place, &str)>) -> bool {
        let Some((Place::Original, _)) = tensors.get(key) else { return false };
        let Some(own) = without_original(key) else { return false };
        let trains = self.method.bias() == Bias::All && own.ends_with(".bias");
        !trains && tensors.contains_key(&own)
    }

    /// What a key says: of what it can mean, what the model has.
    fn read(&self, found: &str) -> Reading {
        if let Some(key) = self.as_saved(found) {
            return Reading { key: key.to_owned(), place: Place::Own, adapter: None };
        }
        let (candidates, fallback) = without_wrappers(found);
        let mut readings: Vec<Reading> = candidates.iter().map(|key| self.read_unwrapped(key)).collect();
        let of_model =
            self.is_layer.and_then(|_| readings.iter().position(|reading| self.is_of_model(&reading.key)));
        readings.swap_remove(of_model.unwrap_or(fallback))
    }

    /// The one key of a tensor of a layer that the model has, if it was found as PEFT saves it: nothing else can be meant.
    fn as_saved<'k>(&self, found: &'k str) -> Option<&'k str> {
        let key = found.strip_prefix(PREFIX)?;
        let (path, end) = self.method.split_key(key)?;
        let is_layer = self.is_layer.is_some_and(|is_layer| is_layer(path));
        (is_layer && !self.method.inert_key_ends().contains(&end)).then(|| self.method.canonical_key(key))
    }

    fn is_of_model(&self, key: &str) -> bool {
        let own = without_original(key).unwrap_or_else(|| key.to_owned());
        let of_method = self.method.split_key(&own).map(|(path, _)| path);
        let path = of_method.or_else(|| Some(own.rsplit_once('.')?.0));
        path.is_some_and(|path| self.is_layer.is_some_and(|is_layer| is_layer(path)))
    }

    fn read_unwrapped(&self, key: &str) -> Reading {
        let is_layer = |path: &str| self.is_layer.is_some_and(|is_layer| is_layer(path));
        let own = |key: &str, adapter: Option<&str>| Reading {
            key: self.method.canonical_key(key).to_owned(),
            place: Place::Own,
            adapter: adapter.map(str::to_owned),
        };
        // A module may be called like any of what is looked for next.
        if key.rsplit_once('.').is_some_and(|(module, _)| is_layer(module)) {
            return own(key, None);
        }
        if let Some(reading) = read_copy(key, &is_layer) {
            return reading;
        }
        let (ends, inert) = (self.method.key_ends(), self.method.inert_key_ends());
        if named_end(key, inert).is_some() || inert.iter().any(|end| has_end(key, end)) {
            return Reading { key: key.to_owned(), place: Place::Inert, adapter: None };
        }
        let direct = ends.iter().any(|end| has_end(key, end));
        match named_end(key, ends) {
            Some((unnamed, name)) if !direct || (self.is_of_model(&unnamed) && !self.is_of_model(key)) => {
                own(&unnamed, Some(name))
            }
            _ => own(key, None),
        }
    }
}

/// A key without wrappers, in the forms that it may have, the fullest first, and which of them is it if no model tells.
fn without_wrappers(found: &str) -> (Vec<String>, usize) {
    let segments: Vec<&str> = found.split('.').filter(|segment| !TRANSPARENT.contains(segment)).collect();
    let whole = segments.join(".");
    // `module.` before PEFT's prefix is never the model's own.
    let bare = whole.trim_start_matches(PARALLEL);
    let mut rest = if bare.starts_with(PREFIX) { bare } else { whole.as_str() };
    rest = rest.strip_prefix(PREFIX).unwrap_or(rest);
    let (mut forms, mut fallback) = (vec![rest.to_owned()], 0);
    loop {
        // Other programs put models that PEFT wrapped into modules of their own.
        let unwrapped = rest.strip_prefix(PREFIX).or_else(|| Some(rest.split_once(INNER_PREFIX)?.1));
        let Some(next) = unwrapped.or_else(|| rest.strip_prefix(PARALLEL)) else { break };
        forms.push(next.to_owned());
        if unwrapped.is_some() {
            fallback = forms.len() - 1;
        }
        rest = next;
    }
    (forms, fallback)
}

/// A key inside of what PEFT has in the place of a module that trains in full; `None` if it is in no such thing.
fn read_copy(key: &str, is_layer: &dyn Fn(&str) -> bool) -> Option<Reading> {
    let segments: Vec<&str> = key.split('.').collect();
    let at = segments.iter().rposition(|segment| [COPY, ORIGINAL].contains(segment)).filter(|at| *at > 0)?;
    let (module, inside) = (&segments[..at], &segments[at + 1..]);
    let (parameter, below) = inside.split_last()?;
    let path = |below: &[&str]| [module, below].concat().join(".");
    if segments[at] == ORIGINAL {
        return Some(Reading { key: key.to_owned(), place: Place::Original, adapter: None });
    }
    // PEFT leaves the name out only of a key of a single layer.
    let (adapter, below) = match below {
        [name, rest @ ..] if !is_layer(&path(below)) => (Some((*name).to_owned()), rest),
        below => (None, below),
    };
    Some(Reading { key: format!("{}.{parameter}", path(below)), place: Place::Copy, adapter })
}

/// The key of the copy for that of the base model's own value next to it.
fn without_original(key: &str) -> Option<String> {
    let (module, inside) = key.rsplit_once(&format!(".{ORIGINAL}."))?;
    Some(format!("{module}.{inside}"))
}

fn has_end(key: &str, end: &str) -> bool {
    key.strip_suffix(end).is_some_and(|path| path.len() > 1 && path.ends_with('.'))
}

/// The key without the adapter's name that is in one of `ends`, `lora_A.NAME.weight` for example, and the name.
fn named_end<'k>(key: &'k str, ends: &[&str]) -> Option<(String, &'k str)> {
    let (front, last) = key.rsplit_once('.')?;
    ends.iter().find_map(|end| {
        let (stem, parameter) = match end.rsplit_once('.') {
            Some((stem, parameter)) if PARAMETERS.contains(&parameter) => (stem, Some(parameter)),
            _ => (*end, None),
        };
        let (front, name) = match parameter {
            Some(parameter) if parameter == last => front.rsplit_once('.')?,
            Some(_) => return None,
            None => (front, last),
        };
        let is_name = !name.is_empty() && !PARAMETERS.contains(&name);
        let path = front.strip_suffix(stem)?.strip_suffix('.').filter(|path| is_name && !path.is_empty())?;
        Some((format!("{path}.{end}"), name))
    })
}

fn several_adapters((first, name): (&str, &str), (second, other): (&str, &str)) -> Error {
    let (first, second) = (first.to_owned(), second.to_owned());
    let names = [name.to_owned(), other.to_owned()];
    StateDictError::SeveralAdapters { first, second, names }.into()
}
