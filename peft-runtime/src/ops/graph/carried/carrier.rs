//! The gradient of a tensor while a backward pass runs, and which tensors have one.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Result, Tensor, TensorId, bail};

use crate::ops::graph::pass::Pass;
use crate::ops::graph::sum::sum;

/// The parts of the gradient of one tensor, added up while a backward pass runs.
///
/// Each pass has a sum of its own, so simultaneous and nested passes through one graph do not mix their gradients.
#[derive(Default)]
pub(super) struct Carrier {
    sums: Mutex<Vec<Sum>>,
    /// The tensors whose gradient it is: an output, and the same in other shapes.
    tensors: Mutex<Vec<TensorId>>,
}

struct Sum {
    pass: Pass,
    grad: Tensor,
    parts: usize,
}

impl Carrier {
    /// Adds a part of the gradient, in whatever shape.
    pub(super) fn add(&self, grad: &Tensor) -> Result<()> {
        let (mut sums, own) = (self.sums(), Pass::current());
        match sums.iter_mut().find(|sum| sum.pass == own) {
            Some(found) => {
                found.grad = sum(&found.grad, &grad.reshape(found.grad.dims())?)?;
                found.parts += 1;
            }
            None => sums.push(Sum { pass: own, grad: grad.detach(), parts: 1 }),
        }
        Ok(())
    }

    /// The gradient, which this pass has added up of `parts`; none of no parts.
    pub(super) fn take(&self, parts: usize) -> Result<Option<Tensor>> {
        let (mut sums, own) = (self.sums(), Pass::current());
        let place = sums.iter().position(|sum| sum.pass == own);
        let found = place.map(|place| sums.swap_remove(place));
        if found.as_ref().map_or(0, |sum| sum.parts) != parts {
            bail!("an earlier backward pass through this graph ended in an error; run the forward pass again")
        }
        Ok(found.map(|sum| sum.grad))
    }

    fn sums(&self) -> MutexGuard<'_, Vec<Sum>> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stands for a tensor in the graph.
#[derive(Clone)]
pub(super) struct Carried {
    pub(super) token: Tensor,
    pub(super) carrier: Arc<Carrier>,
}

/// The tensors that have a token, as long as they live.
#[expect(
    clippy::disallowed_types,
    reason = "ids of tensors have no order, and nothing goes through all of them"
)]
type Tokens = std::collections::HashMap<TensorId, Carried>;

static TOKENS: LazyLock<Mutex<Tokens>> = LazyLock::new(Mutex::default);

#[cfg(test)]
pub(super) fn is_known(id: TensorId) -> bool {
    tokens().contains_key(&id)
}

fn tokens() -> MutexGuard<'static, Tokens> {
    TOKENS.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn carried(tensor: &Tensor) -> Option<Carried> {
    tokens().get(&tensor.id()).cloned()
}

pub(super) fn register(tensor: &Tensor, carried: Carried) {
    carried.carrier.tensors.lock().unwrap_or_else(PoisonError::into_inner).push(tensor.id());
    tokens().insert(tensor.id(), carried);
}

/// Takes a tensor's token off the list when the tensor's op is dropped, and with it that of the same tensor in other shapes:
/// these keep the op.
pub(super) struct Registration(pub(super) Arc<Carrier>);

impl Drop for Registration {
    fn drop(&mut self) {
        let gone = std::mem::take(&mut *self.0.tensors.lock().unwrap_or_else(PoisonError::into_inner));
        let mut tokens = tokens();
        let entries: Vec<_> = gone.iter().filter_map(|id| tokens.remove(id)).collect();
        // With a token other tensors may go, which takes the lock again.
        drop(tokens);
        drop(entries);
    }
}

impl Carried {
    /// Adds a part of the gradient, if there is one; returns how many there are.
    pub(super) fn add(&self, grad: Option<&Tensor>) -> Result<Tensor> {
        if let Some(grad) = grad {
            self.carrier.add(grad)?;
        }
        Tensor::new(if grad.is_some() { 1f32 } else { 0.0 }, &Device::Cpu)
    }
}
