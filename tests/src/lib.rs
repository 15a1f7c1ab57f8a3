//! What the tests share: the replay of parity cases.

pub mod parity;
