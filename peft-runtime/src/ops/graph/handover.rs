//! A gradient that an op hands over to the op before it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{Result, Tensor, bail};

use super::pass::Pass;

/// Where an op leaves its output's gradient for the op before it, whose own output is too small to carry it.
///
/// The two make up one function of more arguments than a candle op can have. Simultaneous and nested passes through one graph do
/// not mix their gradients.
#[derive(Default)]
pub(crate) struct GradientHandover(Mutex<Vec<(Pass, Tensor)>>);

impl GradientHandover {
    /// Leaves a gradient. One that this pass left and that was not taken is discarded.
    pub(crate) fn leave(&self, grad: Tensor) {
        let (mut waiting, own) = (self.waiting(), Pass::current());
        waiting.retain(|(pass, _)| *pass != own);
        waiting.push((own, grad));
    }

    /// The gradient that this pass left.
    pub(crate) fn take(&self) -> Result<Tensor> {
        let (mut waiting, own) = (self.waiting(), Pass::current());
        match waiting.iter().position(|(pass, _)| *pass == own) {
            Some(place) => Ok(waiting.swap_remove(place).1),
            None => bail!("the backward pass of an op came before that of the op after it"),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(Pass, Tensor)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use candle_core::{Device, Tensor};

    use super::GradientHandover;

    fn grad(value: f32) -> Tensor {
        Tensor::new(value, &Device::Cpu).unwrap()
    }

    fn taken(handover: &GradientHandover) -> f32 {
        handover.take().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn the_last_gradient_is_taken_once() {
        let handover = GradientHandover::default();
        assert!(handover.take().is_err());
        handover.leave(grad(1.0));
        handover.leave(grad(2.0));
        assert_eq!(taken(&handover), 2.0);
        assert!(handover.take().is_err());
    }

    #[test]
    fn threads_take_their_own() {
        let (handover, both) = (GradientHandover::default(), Barrier::new(2));
        let pass = |value: f32| {
            handover.leave(grad(value));
            both.wait();
            assert_eq!(taken(&handover), value);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| pass(1.0));
            scope.spawn(|| pass(2.0));
        });
    }
}
