//! What the tests share: the replay of parity cases, one specimen of every layer kind, every method, fingerprints, hostile files.

pub mod attacks;
pub mod fingerprint;
pub mod memory;
pub mod methods;
pub mod mutate;
pub mod parity;
pub mod specimen;
pub mod training;
pub mod victim;
