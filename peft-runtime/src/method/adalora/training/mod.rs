//! What AdaLoRA adds to training: ranks that move between layers, and a term of the loss that keeps the factors orthogonal.

mod importance;
mod orthogonality;
mod rank_allocator;
mod rank_state;
mod schedule;

pub use rank_allocator::{Allocation, RankAllocator};
