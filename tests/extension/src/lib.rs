//! A layer kind and an adapter method outside `peft-runtime`: its public interface has to be enough for them.

mod counted;
mod scale;

pub use counted::CountedLinear;
pub use scale::{Scale, ScaleConfig, ScaleSettings};
