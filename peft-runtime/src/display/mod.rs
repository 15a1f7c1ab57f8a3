//! The model as PEFT's users know it: the module tree and the line of trainable parameters.

mod repr;
mod summary;
mod tree;

pub(crate) use summary::trainable_summary;
pub(crate) use tree::module_tree;
