//! Injection: a pure plan that finds every fault, then an application that cannot fail half-way.

mod apply;
mod exact;
mod facts;
mod plan;
mod planner;
mod reach;
mod replication;
mod report;

pub(crate) use apply::{
    COPIED_BIAS, Made, Tensors, build, commit, inject_adapter, keep_weights, make, make_from_memory, swap,
};
pub(crate) use exact::exactly_targeted;
pub(crate) use plan::{Origin, Plan, name_fault, selector};
pub(crate) use reach::{TokenPlan, stored_paths};
pub use report::InjectionReport;
