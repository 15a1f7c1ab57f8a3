//! A layer kind and an adapter method of a crate that is not part of `peft-runtime`: what is public has to be enough for them.

mod counted;
mod scale;

pub use counted::CountedLinear;
pub use scale::{Scale, ScaleConfig, ScaleSettings};
