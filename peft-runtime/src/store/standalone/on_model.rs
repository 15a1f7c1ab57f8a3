//! An adapter that is read already, put on a model.

use super::StoredAdapter;
use crate::error::Result;
use crate::module::Injectable;
use crate::store::load::{LoadReport, load_stored};

/// Injects an adapter that is apart from any model, as `name`, as `load_adapter` does with one in a folder.
pub(crate) fn load_stored_adapter<M: Injectable + ?Sized>(
    model: &mut M,
    adapter: &StoredAdapter,
    name: &str,
) -> Result<LoadReport> {
    load_stored(model, adapter.contents(), adapter.method(), name)
}
