//! What ops of more arguments, results or passes than candle's have need: the parts of the graph that are not arithmetic.

pub(crate) mod attach;
pub(crate) mod handover;
pub(crate) mod precomputed;
