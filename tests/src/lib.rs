//! What the tests share: the replay of parity cases, a model for every layer kind, every adapter method, random tensors,
//! comparisons, fingerprints, hostile files.

pub mod attacks;
pub mod close;
pub mod fingerprint;
pub mod float_types;
pub mod memory;
pub mod methods;
pub mod moments;
pub mod mutate;
pub mod parity;
pub mod specimen;
pub mod tensors;
pub mod training;
pub mod victim;
