//! What LoRA adds to training: B that learns faster than A, and A that stays as it was drawn.

mod lora_fa;
mod lora_plus;

pub use lora_fa::LoraFa;
pub use lora_plus::{LoraPlus, lora_plus_groups};
