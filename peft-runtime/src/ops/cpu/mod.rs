//! What operations use to compute on the CPU. The `unsafe` code of the crate's arithmetic is here, and only here.
//!
//! | module | has |
//! | --- | --- |
//! | `dispatch` | the instruction sets that the processor has; kernels of plain loops, compiled a second time for wider vectors |
//! | `threads` | work on all threads |
//! | `real`, `exp` | f32 and f64 with their functions; exponential and error function of f32 that vectorise |
//! | `element` | f32, bf16 and f16, which kernels read and write while they compute in f32 |
//! | `slices`, `softmax` | arithmetic on one row |
//! | `matrix`, `operand` | a matrix that is read, of a type that is known when compiling or when running |
//! | `gemm` | one product on one thread: which kernel computes it, the kernels, what they pack |
//! | `tile` | the parts of a matrix that threads write |
//! | `matmul`, `sums` | products on all threads; sums of products of mixed types, rounded once |
//! | `float` | the floats that kernels read and write, and the type in which they compute |
//! | `dequantize` | dequantizing blocks |
//! | `clock` | how long products take |
//!
//! Each imports only from those above it, and from `clock`, which imports nothing. The kernel of a single operation is
//! in the folder of that operation.

pub(crate) mod clock;
pub(crate) mod dequantize;
pub(crate) mod dispatch;
pub(crate) mod element;
mod exp;
pub(crate) mod float;
pub(crate) mod gemm;
pub(crate) mod matmul;
pub(crate) mod matrix;
pub(crate) mod operand;
pub(crate) mod real;
pub(crate) mod slices;
pub(crate) mod softmax;
pub(crate) mod sums;
pub(crate) mod threads;
pub(crate) mod tile;
