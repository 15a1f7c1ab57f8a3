//! The mean cross-entropy of integer targets, from logits or from the hidden states before them.

mod linear;
mod logits;
mod targets;

pub use linear::linear_cross_entropy;
pub use logits::cross_entropy;
pub use targets::count_targets;
