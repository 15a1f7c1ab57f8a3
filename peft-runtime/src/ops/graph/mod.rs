//! What ops need that have more arguments, results or passes than candle's: the parts of the graph that are not
//! arithmetic.

pub(crate) mod attach;
pub(crate) mod carried;
pub(crate) mod handover;
pub(crate) mod pass;
pub(crate) mod precomputed;
mod sum;
