//! What LoRA adds to training: a higher learning rate for B than for A, and an A that keeps its initial values.

mod lora_fa;
mod lora_plus;

pub use lora_fa::LoraFa;
pub use lora_plus::{LoraPlus, lora_plus_groups};
