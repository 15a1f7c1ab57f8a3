//! Mixed batches: each row of a batch with its own adapter.

use std::sync::Arc;

use super::adapter_names;
use crate::error::{Error, Result};
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
        // Where adapters are off, all rows are the base model's.
        let Some(stack) = leaf.stack().filter(|stack| stack.enabled()) else { continue };
        if stack.training() {
            return Err(Error::Routing {
                reason: "the model is in training mode; call `eval()` first".to_owned(),
            });
        }
        if let Some(adapter) = stack.merged().first() {
            let reason =
                format!("adapter `{adapter}` is merged into `{path}`; call `unmerge_adapters()` first");
            return Err(Error::Routing { reason });
        }
        let named = rows.iter().filter_map(|row| stack.slot(row));
        if let Some(slot) =
            named.into_iter().find(|slot| slot.adapter().is_some_and(|adapter| !adapter.mixes_in_a_batch()))
        {
            let reason =
                format!("adapter `{}` uses DoRA on `{path}`, which acts on whole batches alone", slot.name);
            return Err(Error::Routing { reason });
        }
        let Some(owner) = stack.slots().iter().find(|slot| slot.copy().is_some()) else { continue };
        if let Some(row) = rows.iter().find(|row| *row != BASE_ROW && stack.slot(row).is_none()) {
            let owner = &owner.name;
            let reason =
                format!("adapter `{row}` has no copy of `{path}`, which adapter `{owner}` trains in full");
            return Err(Error::Routing { reason });
        }
    }
    Ok(with_rows(rows, || f(model)))
}
