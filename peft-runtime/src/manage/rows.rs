//! Mixed batches: each row of a batch with its own adapter.

use std::sync::Arc;

use super::adapter_names;
use crate::error::{Error, Result, RoutingError};
use crate::layer::{BASE_ROW, with_rows};
use crate::module::{Injectable, leaves};

/// Runs `f` with row `i` of every batch computed by the adapter `rows[i]`, or by none for `__base__`.
pub(crate) fn with_adapter_rows<M: Injectable + ?Sized, S: AsRef<str>, T>(
    model: &M,
    rows: &[S],
    f: impl FnOnce(&M) -> T,
) -> Result<T> {
    let leaves = leaves(model);
    let known = adapter_names(&leaves);
    let rows: Arc<[String]> = rows.iter().map(|row| row.as_ref().to_owned()).collect();
    if let Some(name) = rows.iter().find(|row| *row != BASE_ROW && !known.contains(row)) {
        return Err(Error::UnknownAdapter { name: name.clone(), known });
    }
    for (path, leaf) in &leaves {
        // Where adapters are off, the base model computes all rows.
        let Some(stack) = leaf.stack().filter(|stack| stack.enabled()) else { continue };
        if stack.training() {
            return Err(Error::Routing(RoutingError::Training));
        }
        if let Some(adapter) = stack.merged().first() {
            let (adapter, path) = (adapter.clone(), path.clone());
            return Err(Error::Routing(RoutingError::Merged { adapter, path }));
        }
        let named = rows.iter().filter_map(|row| stack.slot(row));
        if let Some(slot) =
            named.into_iter().find(|slot| slot.adapter().is_some_and(|adapter| !adapter.mixes_in_a_batch()))
        {
            let form = slot.adapter().map(|adapter| adapter.label()).unwrap_or_default();
            let (adapter, path) = (slot.name.clone(), path.clone());
            return Err(Error::Routing(RoutingError::WholeBatches { adapter, form, path }));
        }
        let Some(owner) = stack.slots().iter().find(|slot| slot.copy().is_some()) else { continue };
        if let Some(row) = rows.iter().find(|row| *row != BASE_ROW && stack.slot(row).is_none()) {
            let (adapter, path, owner) = (row.clone(), path.clone(), owner.name.clone());
            return Err(Error::Routing(RoutingError::NoCopy { adapter, path, owner }));
        }
    }
    Ok(with_rows(rows, || f(model)))
}
