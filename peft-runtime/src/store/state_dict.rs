//! Adapters and base models as maps from keys to tensors.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Tensor, Var};

use super::base_model::{base_parameters, replace_base};
use super::canonical::{KeyReader, layer_paths};
use super::embeddings::{SaveEmbeddings, embedding_weights};
use super::keys::with_prefix;
use crate::adapter::{Adapter, AdapterMethod, AdapterTensor, KeyedShapes, StoredTensor};
use crate::config::Bias;
use crate::error::{Error, Result, ShapeMismatch, TensorReport};
use crate::inject::{
    CopiedBias, InjectionReport, Origin, commit, exactly_targeted, make_from_memory, plan, stored_paths,
};
use crate::layer::{Content, Layer, Slot};
use crate::manage::{check_known, check_not_merged, method_of};
use crate::module::{Injectable, leaves};
use crate::path::ModulePath;
use crate::schema::Family;

/// A tensor that belongs to an adapter, and the variable that holds it.
struct Entry {
    /// The key without the prefix.
    key: String,
    var: Var,
    /// The adapter it belongs to, and its key there, if it is not one of the layer's own parameters.
    owner: Option<(Arc<dyn Adapter>, &'static str)>,
    /// Whether it repeats the values of another layer's, which are set there.
    repeats: bool,
}

impl Entry {
    fn parameter(key: String, var: Var) -> Self {
        Self { key, var, owner: None, repeats: false }
    }

    /// Calls `f` with the adapter that owns the tensor and with the tensor, if there is such an adapter.
    fn with_owner<T>(&self, f: impl FnOnce(&dyn Adapter, &AdapterTensor<'_>) -> T) -> Option<T> {
        let (adapter, key) = self.owner.as_ref()?;
        let tensors = adapter.tensors();
        tensors.iter().find(|tensor| tensor.key == *key).map(|tensor| f(adapter.as_ref(), tensor))
    }

    /// A copy of the values as files store them.
    fn stored(&self) -> candle_core::Result<Tensor> {
        let stored = self.with_owner(Adapter::stored_tensor);
        let stored = stored.unwrap_or_else(|| Ok(self.var.as_detached_tensor()))?;
        if stored.elem_count() == 0 { Ok(stored) } else { Ok(stored.copy()?.detach()) }
    }

    /// The variable's new values, if `stored` fits.
    fn unstored(&self, stored: &Tensor) -> candle_core::Result<Option<Tensor>> {
        if stored.dims() == self.var.dims() {
            return Ok(Some(stored.clone()));
        }
        self.with_owner(|adapter, tensor| adapter.unstored_tensor(tensor, stored)).unwrap_or(Ok(None))
    }
}

/// Everything that an adapter stores, in model order.
fn entries<M: Injectable + ?Sized>(model: &M, name: &str) -> Result<Vec<Entry>> {
    let leaves = leaves(model);
    check_known(&leaves, &[name])?;
    let slots = || leaves.iter().filter_map(|(_, leaf)| leaf.stack()?.slot(name));
    let method = slots().map(|slot| &slot.method).next();
    let parameters = leaves.iter().filter(|(_, layer)| {
        layer.kind().family == Family::Parameter
            && layer.stack().is_some_and(|stack| stack.slot(name).is_some())
    });
    let stored_paths = stored_paths(parameters.map(|(path, _)| path));
    let mut entries = Vec::new();
    for (path, leaf) in &leaves {
        let slot = leaf.stack().and_then(|stack| stack.slot(name));
        let stored_path = stored_paths.get(path).unwrap_or(path);
        entries.extend(slot.into_iter().flat_map(|slot| slot_entries(stored_path, slot)));
        entries.extend(
            method.into_iter().flat_map(|method| bias_entries(path, *leaf, slot, method.as_ref(), name)),
        );
    }
    Ok(entries)
}

fn slot_entries(path: &ModulePath, slot: &Slot) -> Vec<Entry> {
    match &slot.content {
        Content::Adapter(adapter) => {
            let stored = adapter.tensors().into_iter().filter(|tensor| tensor.stored);
            let owner = |key| Some((Arc::clone(adapter), key));
            stored
                .map(|tensor| Entry {
                    key: path.parameter(tensor.key),
                    var: tensor.var.clone(),
                    owner: owner(tensor.key),
                    repeats: !tensor.trainable,
                })
                .collect()
        }
        Content::Copy(parameters) => {
            let copies = parameters.iter();
            copies.map(|copy| Entry::parameter(path.parameter(copy.name), copy.var.clone())).collect()
        }
    }
}

/// The base layer's own bias, if it trains together with the adapter; where the adapter has a copy of the layer, PEFT stores
/// the copy's bias a second time.
fn bias_entries(
    path: &ModulePath,
    leaf: &dyn Layer,
    slot: Option<&Slot>,
    method: &dyn AdapterMethod,
    adapter: &str,
) -> Vec<Entry> {
    let copied = slot.and_then(Slot::copy).map(|copies| (copies, CopiedBias::of(&method.selection(), path)));
    let key = match (method.bias(), slot, &copied) {
        (Bias::None, ..) => return Vec::new(),
        (_, Some(slot), None) if slot.adapter().is_some() => path.parameter("base_layer.bias"),
        (Bias::LoraOnly, ..) => return Vec::new(),
        (Bias::All, _, Some((_, copied))) => copied.own(),
        (Bias::All, _, None) => path.parameter("bias"),
    };
    let own = leaf.parameters().into_iter().find(|(name, _)| *name == "bias");
    let own = own.and_then(|(_, own)| Var::from_tensor(own).ok());
    let second = copied.and_then(|(copies, copied)| {
        let copy = copies.iter().find(|copy| copy.name == "bias")?;
        Some(Entry::parameter(copied.second(adapter), copy.var.clone()))
    });
    own.map(|var| Entry::parameter(key, var)).into_iter().chain(second).collect()
}

/// The adapter's tensors under their file keys; they are copies, which later training does not change.
pub(crate) fn adapter_state_dict<M: Injectable + ?Sized>(
    model: &M,
    name: &str,
) -> Result<BTreeMap<String, Tensor>> {
    state_dict(model, name, SaveEmbeddings::Auto)
}

/// The same, with the embedding weights that `save` asks for.
pub(super) fn state_dict<M: Injectable + ?Sized>(
    model: &M,
    name: &str,
    save: SaveEmbeddings,
) -> Result<BTreeMap<String, Tensor>> {
    let copy = |entry: Entry| Ok((with_prefix(&entry.key), entry.stored()?));
    let own: BTreeMap<String, Tensor> = entries(model, name)?.into_iter().map(copy).collect::<Result<_>>()?;
    let embeddings = embedding_weights(model, name, save)?;
    Ok(embeddings.into_iter().map(|(key, weight)| (with_prefix(&key), weight)).chain(own).collect())
}

/// Injects an adapter with the values in `state`, whose keys and shapes give its layers and ranks.
pub(crate) fn inject_adapter_from_state_dict<M: Injectable + ?Sized>(
    model: &mut M,
    state: &BTreeMap<String, Tensor>,
    method: &dyn AdapterMethod,
    name: &str,
) -> Result<InjectionReport> {
    let tensors = canonical_state(model, method, state)?;
    let shapes = tensors.iter().map(|(key, tensor)| (key.as_str(), tensor.dims())).collect();
    let layers = layer_paths(model);
    // A module that trains in full may be called like the end of a key.
    let is_parameter = |key: &str| key.rsplit_once('.').is_some_and(|(module, _)| layers.contains(module));
    let split = |key| {
        let (path, end) = method.split_key(key)?;
        (!end.contains('.') || !is_parameter(key)).then_some((path, end))
    };
    let keyed = KeyedShapes::new(&shapes, method.key_prefix(), split)?;
    let method = exactly_targeted(model, method.for_tensors(&keyed)?);
    let plan = plan(model, method.as_ref(), name, Origin::File)?;
    let made = make_from_memory(model, &plan, &tensors)?;
    commit(model, &plan, made, true)
}

/// The tensors of a state dict under their one keys.
fn canonical_state<M: Injectable + ?Sized>(
    model: &M,
    method: &dyn AdapterMethod,
    state: &BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>> {
    let layers = layer_paths(model);
    let is_layer = |path: &str| layers.contains(path);
    let keys = KeyReader { method, is_layer: Some(&is_layer) }.read_all(state.keys().map(String::as_str))?;
    let tensor = |(key, found): (String, String)| Some((key, state.get(&found)?.clone()));
    Ok(keys.found.into_iter().filter_map(tensor).collect())
}

/// Sets the adapter's tensors to the values in `state`, which must hold exactly its keys.
pub(crate) fn load_adapter_state_dict<M: Injectable + ?Sized>(
    model: &mut M,
    state: &BTreeMap<String, Tensor>,
    name: &str,
) -> Result<()> {
    let entries = entries(model, name)?;
    check_not_merged(model, name, "load weights into")?;
    let method = method_of(model, name)?;
    let mut values = canonical_state(model, method.as_ref(), state)?;
    let mut report = TensorReport::default();
    let mut updates = Vec::new();
    // The bias of a copy is stored twice, and read once.
    for entry in entries.iter().filter(|entry| !entry.key.contains(".modules_to_save.")) {
        let Some(tensor) = values.remove(entry.key.as_str()) else {
            report.missing.push(entry.key.clone());
            continue;
        };
        if entry.repeats {
            continue;
        }
        match entry.unstored(&tensor)? {
            Some(tensor) => {
                let value = tensor.detach().to_dtype(entry.var.dtype())?.to_device(entry.var.device())?;
                // A value that shares memory with the variable would be overwritten while it is read.
                updates.push((&entry.var, value.copy()?));
            }
            None => report.mismatched.push(ShapeMismatch {
                key: entry.key.clone(),
                expected: entry.var.dims().to_vec(),
                found: tensor.dims().to_vec(),
            }),
        }
    }
    report.unexpected.extend(values.keys().cloned());
    let left = values.iter().map(|(key, tensor)| (key.clone(), StoredTensor::in_memory(tensor)));
    let base = base_parameters(model, &mut report, &left.collect())?;
    if !report.is_empty() {
        return Err(Error::Tensors { adapter: name.to_owned(), report: Box::new(report) });
    }
    for (var, value) in updates {
        var.set(&value)?;
    }
    replace_base(model, &base)
}
