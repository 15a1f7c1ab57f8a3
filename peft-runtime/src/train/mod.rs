//! Training: optimiser, schedule, gradient checks and checkpoints, for a loop of your own.
//!
//! [`Trainer`] has all of it behind one call a batch. Its parts work alone as well, beside candle's optimisers:
//! [`audit`](fn@audit) in one line of a loop, [`clip_by_global_norm`], [`Schedule::factor`], [`Checkpoints`].

mod adamw;
mod audit;
mod checkpoint;
mod gradients;
mod group;
mod lora_fa;
mod lora_plus;
mod matmul_clock;
mod optimizer;
mod orthogonality;
mod rank_allocator;
mod rank_state;
mod schedule;
mod step_folders;
mod trainer;
mod training_state;

pub use adamw::{AdamW, AdamWOptions, UpdateRule};
pub use audit::{Audit, MissingCause, MissingGradient, audit};
pub use checkpoint::{Checkpoints, TrainingCheckpoint};
pub use gradients::{GradientAccumulator, clip_by_global_norm, first_non_finite, global_norm};
pub use group::ParameterGroup;
pub use lora_fa::LoraFa;
pub use lora_plus::{LoraPlus, lora_plus_groups};
pub use matmul_clock::MatmulClock;
pub use optimizer::Optimizer;
pub use rank_allocator::{Allocation, RankAllocator};
pub use schedule::Schedule;
pub use trainer::{StepReport, Trainer};
pub use training_state::TrainingState;
