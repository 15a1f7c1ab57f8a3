//! What the tests share: the replay of parity cases, one specimen of every layer kind, every method, fingerprints.

pub mod fingerprint;
pub mod methods;
pub mod parity;
pub mod specimen;
pub mod training;
