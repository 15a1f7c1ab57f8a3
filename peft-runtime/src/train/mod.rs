//! Training: what an optimiser needs beyond gradients.

mod orthogonality;
mod rank_allocator;

pub use rank_allocator::{Allocation, RankAllocator};
