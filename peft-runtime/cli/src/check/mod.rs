//! Which program takes an adapter, and whether it uses every tensor.
//!
//! `adapter_file` reads an adapter's config and the header of its tensors, whatever its method. `features` finds in them what
//! programs treat differently, `programs` has a table for each program of how it treats that, and `verdict` puts both together.
//! `base_fit` compares the adapter with a base model: `layer_fit` the sizes of a layer, `fused_experts` experts that PEFT fuses, and
//! `saved_modules` what is trained in full.

pub mod adapter_file;
pub mod arguments;
pub mod base_fit;
pub mod feature;
pub mod features;
pub mod fix;
pub mod fused_experts;
pub mod judgement;
pub mod keys;
pub mod layer_fit;
pub mod programs;
pub mod saved_modules;
pub mod verdict;
