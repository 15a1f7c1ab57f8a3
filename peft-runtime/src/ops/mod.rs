//! Tensor functions without state, and the differentiable kernels.
//!
//! candle's own matrix product and convolution make a dense gradient for both operands in the backward pass, frozen
//! or not. The ops here take the frozen operand as a captured constant: their backward passes form the gradients of the
//! input and of the adapter's factors, and nothing else.

pub(crate) mod adamw;
pub(crate) mod attach;
pub(crate) mod attention;
pub(crate) mod checkpoint;
mod computed;
pub(crate) mod constant;
pub(crate) mod conv;
#[expect(unsafe_code, reason = "kernels work on raw memory")]
pub(crate) mod cpu;
pub(crate) mod cross_entropy;
pub(crate) mod decompose;
pub(crate) mod dropout;
mod elements;
mod frozen;
pub(crate) mod gated;
#[cfg(test)]
mod gradcheck;
pub(crate) mod input;
pub(crate) mod linear;
pub(crate) mod linear_add;
pub(crate) mod low_rank;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod packing;
pub(crate) mod principal;
pub(crate) mod quantized_linear;
mod quantized_matmul;
pub(crate) mod random;
mod relay;
mod replay;
pub(crate) mod rotary;
pub(crate) mod rotary_attention;
pub(crate) mod scale;
pub(crate) mod task_vectors;

use candle_core::{DType, Result, Tensor};

/// The dtype that holds a sum of the two without loss, as PyTorch promotes floats.
pub(crate) fn promoted(a: DType, b: DType) -> DType {
    match (a, b) {
        (a, b) if a == b => a,
        (DType::F64, _) | (_, DType::F64) => DType::F64,
        // f16 and bf16 hold neither each other nor f32.
        _ => DType::F32,
    }
}

/// The sum in the promoted dtype.
pub(crate) fn add_promoted(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let dtype = promoted(a.dtype(), b.dtype());
    let (a, b) = (a.to_dtype(dtype)?, b.to_dtype(dtype)?);
    // candle's sum keeps a gradient for an operand that is part of no graph.
    match (a.track_op(), b.track_op()) {
        (true, false) => constant::add_constant(&a, &b),
        (false, true) => constant::add_constant(&b, &a),
        _ => a + b,
    }
}

/// Where a tensor's values are: the same for tied parameters, whose tensors may have different ids.
pub(crate) fn place(tensor: &Tensor) -> (usize, usize) {
    let (storage, layout) = tensor.storage_and_layout();
    (std::ptr::from_ref(&*storage).addr(), layout.start_offset())
}

/// Whether the tensor's values sit in main memory in a precision that the CPU has no arithmetic for.
pub(crate) fn is_half_on_cpu(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && matches!(tensor.dtype(), DType::F16 | DType::BF16)
}
