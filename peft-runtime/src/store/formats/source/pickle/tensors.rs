//! The tensors of a pickle and their storages, looked over before any is read.

use std::collections::BTreeMap;
use std::ops::Range;

use super::fault::Fault;
use super::strided::StridedTensor;
use super::value::{Value, Values, View};

/// How many things that are not tensors a message lists.
const LISTED: usize = 6;

/// How many bytes tensors may have together, however often they share a storage.
const MOST_SHARED: usize = 16 << 20;

/// A storage's bytes by its key.
type Storages<'s, 'f> = dyn Fn(&str) -> Option<&'f [u8]> + 's;

/// The tensors of a dictionary under their names, each of which lies in the file.
pub(super) fn find<'f>(
    values: &Values<'f>,
    storages: &Storages<'_, 'f>,
    file: &[u8],
) -> Result<BTreeMap<String, StridedTensor>, Fault> {
    let mut total = 0usize;
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for (name, view) in named_views(values)? {
        let found = storage_of(view, storages, file).and_then(|storage| {
            let View { dtype, offset, shape, strides, .. } = view.clone();
            let tensor = StridedTensor { dtype, offset, shape, strides, storage };
            Ok((tensor.check()?, tensor))
        });
        let (size, tensor) = found.map_err(|Fault(reason)| Fault(format!("`{name}` {reason}")))?;
        total = total.saturating_add(size);
        known.insert(view.storage.key, tensor.storage.len());
        tensors.insert(name.to_owned(), tensor);
    }
    // Tensors may share a storage; many that all do would multiply it.
    let most = known.values().fold(0usize, |sum, length| sum.saturating_add(*length)).saturating_mul(2);
    if total > most.max(MOST_SHARED) {
        return Fault::new(format!(
            "its tensors are views of {total} bytes into storages of {} bytes",
            most / 2
        ));
    }
    Ok(tensors)
}

/// The tensors by name, if there is nothing else.
fn named_views<'v, 'f>(values: &'v Values<'f>) -> Result<BTreeMap<&'f str, &'v View<'f>>, Fault> {
    let Value::Dict(entries) = values.get(values.root) else {
        let found = values.get(values.root).describe();
        return Fault::new(format!("it is {found}, and not a dictionary of tensors by their names"));
    };
    let (mut views, mut others) = (BTreeMap::new(), Vec::new());
    for (key, value) in entries {
        match (values.get(*key), values.get(*value)) {
            (Value::Text(name), Value::Tensor(view)) => {
                views.insert(*name, view.as_ref());
            }
            (Value::Text(name), other) => {
                let name: String = name.chars().take(60).collect();
                others.push(format!("`{name}` ({})", other.describe()));
            }
            (key, _) => others.push(format!("a key that is {}", key.describe())),
        }
    }
    if others.is_empty() {
        return Ok(views);
    }
    let more =
        if others.len() > LISTED { format!(" and {} more", others.len() - LISTED) } else { String::new() };
    others.truncate(LISTED);
    Fault::new(format!(
        "next to {} tensors it holds {}{more}, as the state of a trainer does; save the dictionary of the adapter's tensors",
        views.len(),
        others.join(", ")
    ))
}

/// Where in the file the storage of a view is.
fn storage_of<'f>(view: &View<'f>, storages: &Storages<'_, 'f>, file: &[u8]) -> Result<Range<usize>, Fault> {
    let storage = view.storage;
    let bytes =
        storages(storage.key).ok_or_else(|| Fault("has a storage that is not in the file".to_owned()))?;
    let size = storage.dtype.map_or(1, |dtype| dtype.bitsize() / 8);
    match storage.elements.checked_mul(size) {
        Some(needed) if needed <= bytes.len() => {
            let start = bytes.as_ptr().addr().saturating_sub(file.as_ptr().addr());
            Ok(start..start + needed)
        }
        _ => Fault::new(format!(
            "has a storage of {} bytes, too short for its {} elements",
            bytes.len(),
            storage.elements
        )),
    }
}
