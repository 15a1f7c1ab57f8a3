//! Gives an adapter another name.

use super::{adapter_names, check_known, for_each_stack};
use crate::error::{Error, Fault, Result};
use crate::inject::name_fault;
use crate::module::{Injectable, leaves};

/// Renames the adapter everywhere; nothing else about it changes.
pub(crate) fn rename_adapter<M: Injectable + ?Sized>(
    model: &mut M,
    name: &str,
    new_name: &str,
) -> Result<()> {
    let all = leaves(model);
    check_known(&all, &[name])?;
    let taken = name != new_name && adapter_names(&all).iter().any(|known| known == new_name);
    let duplicate = taken.then(|| Fault::DuplicateName { name: new_name.to_owned() });
    let faults: Vec<Fault> = name_fault(new_name).into_iter().chain(duplicate).collect();
    if !faults.is_empty() {
        return Err(Error::Plan { adapter: new_name.to_owned(), faults });
    }
    for_each_stack(model, |stack| stack.rename(name, new_name));
    Ok(())
}
