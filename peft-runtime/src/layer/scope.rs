//! What holds for the forward passes of one thread for a while: gradients off, rows routed to adapters.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// The name that stands for a row without an adapter.
pub(crate) const BASE_ROW: &str = "__base__";

thread_local! {
    static TRACKS: Cell<bool> = const { Cell::new(true) };
    static ROWS: RefCell<Option<Arc<[String]>>> = const { RefCell::new(None) };
}

/// Restores what held before, also when the closure panics.
struct Restore<F: FnMut()>(F);

impl<F: FnMut()> Drop for Restore<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Runs `f` with adapter tensors outside of the graph, so that a forward pass keeps no activations for a backward pass.
///
/// It holds for this thread.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use peft_runtime::no_grad;
///
/// let logits = no_grad(|| Tensor::ones(3, DType::F32, &Device::Cpu))?;
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn no_grad<T>(f: impl FnOnce() -> T) -> T {
    let before = TRACKS.replace(false);
    let _restore = Restore(|| TRACKS.set(before));
    f()
}

/// Whether adapter tensors are part of the graph.
pub(super) fn tracks() -> bool {
    TRACKS.get()
}

/// Runs `f` with one adapter name for each row of the batch.
pub(crate) fn with_rows<T>(rows: Arc<[String]>, f: impl FnOnce() -> T) -> T {
    let before = ROWS.replace(Some(rows));
    let _restore = Restore(|| {
        ROWS.replace(before.clone());
    });
    f()
}

/// The adapter names of the rows, if rows are routed.
pub(super) fn rows() -> Option<Arc<[String]>> {
    ROWS.with_borrow(Clone::clone)
}
