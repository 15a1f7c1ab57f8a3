//! Injection: a pure plan that finds every fault, then an application that cannot fail halfway.

mod commit;
mod copied_bias;
mod make;
mod options;
mod plan;
mod planning;
mod report;
mod tied;

pub(crate) use commit::{commit, inject_adapter, swap};
pub(crate) use copied_bias::{CopiedBias, base_key};
pub(crate) use make::{LayerChanges, Tensors, keep_weights, make, make_from_memory};
pub use options::InjectOptions;
pub(crate) use plan::{Origin, Plan};
pub(crate) use planning::{exactly_targeted, plan, selector, stored_paths};
pub use report::{InjectionReport, UnmatchedPattern};

use crate::error::Fault;
use crate::layer::BASE_ROW;

/// Why a name cannot be an adapter's; an adapter's name is part of keys and the name of a folder.
pub(crate) fn name_fault(name: &str) -> Option<Fault> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.contains('.') {
        "dots separate the parts of a tensor's key"
    } else if name.contains(['/', '\\', ':']) || name.chars().any(char::is_control) {
        "it is also the name of a folder"
    } else if name == BASE_ROW {
        "it stands for rows without an adapter"
    } else if name.len() > 128 {
        "it is longer than 128 bytes"
    } else {
        return None;
    };
    Some(Fault::Name { name: name.to_owned(), reason })
}
