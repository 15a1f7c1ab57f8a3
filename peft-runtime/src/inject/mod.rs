//! Injection: a pure plan that finds every fault, then an application that cannot fail half-way.

mod apply;
mod name;
mod plan;
mod planning;
mod report;

pub(crate) use apply::{
    COPIED_BIAS, LayerChanges, Tensors, commit, inject_adapter, keep_weights, make, make_from_memory, swap,
};
pub(crate) use name::name_fault;
pub(crate) use plan::{Origin, Plan};
pub(crate) use planning::{exactly_targeted, plan, selector, stored_paths};
pub use report::InjectionReport;
