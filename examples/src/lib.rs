//! What the examples share: data, progress, curves, measurements.

pub mod batches;
pub mod bench;
pub mod float_type;
pub mod memory;
pub mod plot;
pub mod progress;
pub mod quantization;
pub mod shapes;
pub mod source;
pub mod threads;
