//! Injection: a pure plan that finds every fault, then an application that cannot fail half-way.

mod apply;
mod facts;
mod plan;
mod planner;
mod report;

pub(crate) use apply::{COPIED_BIAS, Made, Tensors, commit, make, make_from_memory, swap};
pub(crate) use facts::ModelFacts;
pub(crate) use plan::{Origin, Plan, name_fault};
pub use report::InjectionReport;
