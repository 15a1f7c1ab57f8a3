//! Temporary settings for the forward passes of one thread: gradients off, rows routed to adapters, inputs recorded.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::{AdapterStack, LayerInput};
use crate::path::ModulePath;

/// The name that stands for a row without an adapter.
pub(crate) const BASE_ROW: &str = "__base__";

thread_local! {
    static TRACKS: Cell<bool> = const { Cell::new(true) };
    static ROWS: RefCell<Option<Arc<[String]>>> = const { RefCell::new(None) };
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Restores the previous setting, even if the closure panics.
struct Restore<F: FnMut()>(F);

impl<F: FnMut()> Drop for Restore<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Runs `f` with adapter tensors outside of the graph, so that a forward pass keeps no activations for a backward pass.
///
/// It applies only to the current thread.
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

/// The inputs of the layers that carry one adapter, in the order in which they run.
struct Recorder {
    adapter: String,
    /// Each with the layer's path.
    inputs: Vec<(ModulePath, Tensor)>,
}

/// Runs `f` with adapters off; also returns the input of every layer that carries `adapter`, each with the layer's
/// path.
pub(crate) fn record_inputs<T>(adapter: &str, f: impl FnOnce() -> T) -> (T, Vec<(ModulePath, Tensor)>) {
    let recorder = Recorder { adapter: adapter.to_owned(), inputs: Vec::new() };
    RECORDER.replace(Some(recorder));
    let _restore = Restore(|| {
        RECORDER.replace(None);
    });
    let output = f();
    let recorded = RECORDER.replace(None);
    (output, recorded.map(|recorder| recorder.inputs).unwrap_or_default())
}

/// Hands the input of a layer to the recorder; returns whether there is one, in which case adapters are not applied.
pub(super) fn record(stack: &AdapterStack, input: LayerInput<'_>) -> Result<bool> {
    RECORDER.with_borrow_mut(|recorder| {
        let Some(recorder) = recorder else { return Ok(false) };
        if stack.slot(&recorder.adapter).is_some() {
            recorder.inputs.push((stack.path().clone(), input.tensor()?.detach()));
        }
        Ok(true)
    })
}

/// Whether inputs are recorded.
pub(super) fn records() -> bool {
    RECORDER.with_borrow(Option::is_some)
}

/// The adapter names of the rows, if rows are routed.
pub(super) fn rows() -> Option<Arc<[String]>> {
    ROWS.with_borrow(Clone::clone)
}

/// The settings for a thread's forward passes at one moment, to be reapplied later.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    tracks: bool,
    rows: Option<Arc<[String]>>,
}

impl Scope {
    /// The current settings.
    pub(crate) fn current() -> Self {
        Self { tracks: tracks(), rows: rows() }
    }

    /// Runs `f` with these settings.
    pub(crate) fn enter<T>(&self, f: impl FnOnce() -> T) -> T {
        let tracked = TRACKS.replace(self.tracks);
        let routed = ROWS.replace(self.rows.clone());
        let _restore = Restore(|| {
            TRACKS.set(tracked);
            ROWS.replace(routed.clone());
        });
        f()
    }
}
