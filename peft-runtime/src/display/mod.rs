//! The model as PEFT users know it: the module tree and the line of trainable parameters.

mod repr;
mod status;
mod summary;
mod tree;

pub use status::{LayerStatus, ModelStatus, Uniform};
pub(crate) use status::{layer_status, model_status};
pub(crate) use summary::trainable_summary;
pub(crate) use tree::module_tree;
