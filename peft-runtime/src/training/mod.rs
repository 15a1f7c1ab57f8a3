//! Training: optimiser, schedule, gradient checks and checkpoints.

mod adamw;
mod audit;
mod checkpoint;
mod gradient_check;
mod gradients;
mod group;
mod matmul_clock;
mod optimizer;
mod rank_allocation;
mod schedule;
mod step_folders;
mod trainer;
mod training_state;

pub use adamw::{AdamW, AdamWOptions, UpdateRule};
pub use audit::{Audit, MissingCause, MissingGradient, audit};
pub use checkpoint::{Checkpoints, TrainingCheckpoint};
pub use gradient_check::{GradientCheck, Slope, check_gradients};
pub use gradients::{GradientAccumulator, clip_by_global_norm, first_non_finite, global_norm};
pub use group::ParameterGroup;
pub use matmul_clock::MatmulClock;
pub use optimizer::Optimizer;
pub use rank_allocation::RankAllocation;
pub use schedule::Schedule;
pub use trainer::{StepReport, Trainer};
pub use training_state::TrainingState;
