//! What runs on the processor directly: the only `unsafe` code of the crate.

pub(crate) mod dequantize;
pub(crate) mod matmul;
pub(crate) mod tile;
pub(crate) mod window;
