//! What the examples share: data, progress, curves, measurements.

pub mod batches;
pub mod digits;
pub mod memory;
pub mod plot;
pub mod progress;
