//! Tensor functions without state, and the differentiable kernels.
//!
//! candle's own matrix product and convolution compute a dense gradient for both operands in the backward pass, frozen
//! or not. The ops here take the frozen operand as a captured constant: their backward passes compute only the
//! gradients of the input and of the adapter's factors.
//!
//! | operation | where |
//! | --- | --- |
//! | linear layers with a frozen weight | `linear`: `mod` dense, `quantized`, `low_rank` with LoRA's factors, `residual` with a residual connection and a gated input |
//! | convolutions in one and two dimensions | `conv` |
//! | scaled dot-product attention | `attention`; `attention::rotated` rotates queries and keys itself |
//! | rotary position embedding | `rotary` |
//! | layer norm, RMS norm | `norm` |
//! | SwiGLU, GEGLU, GELU | `gated` |
//! | cross-entropy | `cross_entropy`: from `logits`, or from hidden states and the output layer (`linear`) |
//! | dropout | `dropout` |
//! | scaling of features; sums, products and quotients with a constant | `scale`, `constant` |
//! | batches without their padding | `packing` |
//! | a block that is computed again in the backward pass | `recompute` |
//! | a step of AdamW | `adamw` |
//! | products outside of any graph; SVD, QR, principal components | `matmul`, `decompose` |
//! | sums of adapters that were trained separately | `task_vectors` |
//! | seeded random numbers, and draws that are repeated | `random` |
//!
//! The folder of an operation has the function and its forward pass in `mod.rs`, `backward.rs` where the backward pass is long,
//! the arithmetic on the CPU in `kernel`, the checks of value and gradients in `tests.rs`, and its benchmark in `bench.rs`, which
//! `benches/kernels` includes. What operations share: `cpu` has the `unsafe` code, matrix products and arithmetic on rows;
//! `graph` ties values to candle's graph; `elements` reads a tensor's memory; `testing` has random tensors and gradient checks.

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod constant;
pub(crate) mod conv;
#[expect(unsafe_code, reason = "kernels work on raw memory")]
pub(crate) mod cpu;
pub(crate) mod cross_entropy;
pub(crate) mod decompose;
pub(crate) mod dropout;
mod elements;
pub(crate) mod gated;
pub(crate) mod graph;
pub(crate) mod linear;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod packing;
pub(crate) mod random;
pub(crate) mod recompute;
pub(crate) mod rotary;
pub(crate) mod scale;
pub(crate) mod task_vectors;
#[cfg(test)]
pub(crate) mod testing;

use candle_core::{DType, Result, Tensor, Var};

/// The dtype that holds a sum of the two without loss, as PyTorch promotes floats.
pub(crate) fn promoted(a: DType, b: DType) -> DType {
    match (a, b) {
        (a, b) if a == b => a,
        (DType::F64, _) | (_, DType::F64) => DType::F64,
        // f16 and bf16 hold neither each other nor f32.
        _ => DType::F32,
    }
}

/// The tensor in a precision in which sums lose nothing that matters: f32 instead of half, otherwise its own.
pub(crate) fn widened(tensor: &Tensor) -> Result<Tensor> {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => tensor.to_dtype(DType::F32),
        _ => Ok(tensor.clone()),
    }
}

/// The variable's value outside of any graph, [`widened`].
pub(crate) fn widened_value(var: &Var) -> Result<Tensor> {
    widened(&var.as_detached_tensor())
}

/// The sum of the two in the promoted dtype.
pub(crate) fn add_promoted(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let dtype = promoted(a.dtype(), b.dtype());
    let (a, b) = (a.to_dtype(dtype)?, b.to_dtype(dtype)?);
    // candle's sum keeps a gradient for an operand that is not part of a graph.
    match (a.track_op(), b.track_op()) {
        (true, false) => constant::add_constant(&a, &b),
        (false, true) => constant::add_constant(&b, &a),
        _ => a + b,
    }
}

/// Where a tensor's values are: the same for tied parameters, whose tensors may have different ids.
pub(crate) fn storage_address(tensor: &Tensor) -> (usize, usize) {
    let (storage, layout) = tensor.storage_and_layout();
    (std::ptr::from_ref(&*storage).addr(), layout.start_offset())
}

/// Whether the tensor's values are in main memory in a precision that the CPU has no arithmetic for.
pub(crate) fn is_half_on_cpu(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && is_half(tensor.dtype())
}

/// Whether a value takes 16 bits.
pub(crate) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// Whether f32 holds every value of the dtype: f32 and half precision.
pub(crate) fn is_at_most_f32(dtype: DType) -> bool {
    dtype == DType::F32 || is_half(dtype)
}
