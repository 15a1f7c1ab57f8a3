//! What runs on the processor directly: the only `unsafe` code of the crate.

pub(crate) mod attention;
pub(crate) mod clock;
pub(crate) mod dequantize;
mod dispatch;
pub(crate) mod dropout;
mod exp;
pub(crate) mod gated;
mod gemm;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod real;
mod reduce;
pub(crate) mod rotary;
pub(crate) mod softmax;
pub(crate) mod tile;
pub(crate) mod vector;
pub(crate) mod window;
