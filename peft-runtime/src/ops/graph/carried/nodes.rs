//! The two nodes that an op has in candle's graph.

use std::sync::{Arc, OnceLock};

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Storage, Tensor, bail,
};

use super::carrier::{Carried, Carrier, Registration, carried};
use super::op::Op;

/// An op with its arguments.
pub(super) struct Step<O, const N: usize> {
    pub(super) op: O,
    args: [Tensor; N],
    /// What stands for an argument, if it has a token.
    carried: [Option<Carried>; N],
    /// The output outside of the graph.
    pub(super) output: OnceLock<Tensor>,
    pub(super) carrier: Arc<Carrier>,
}

impl<O: Op<N>, const N: usize> Step<O, N> {
    pub(super) fn new(op: O, args: [&Tensor; N]) -> Arc<Self> {
        let carried = args.map(carried);
        let args = args.map(Tensor::clone);
        Arc::new(Self { op, args, carried, output: OnceLock::new(), carrier: Arc::default() })
    }

    /// What the token depends on.
    pub(super) fn edges(&self) -> [Tensor; N] {
        std::array::from_fn(|index| match &self.carried[index] {
            Some(carried) => carried.token.clone(),
            None => self.args[index].clone(),
        })
    }

    pub(super) fn forward(&self) -> Result<(CpuStorage, Shape)> {
        let held = self.args.each_ref().map(Tensor::storage_and_layout);
        let mut args = Vec::with_capacity(N);
        for (storage, layout) in &held {
            let Storage::Cpu(storage) = &**storage else {
                bail!("an argument of `{}` is on another device", self.op.name())
            };
            args.push((storage, *layout));
        }
        match <[(&CpuStorage, &Layout); N]>::try_from(args) {
            Ok(args) => self.op.forward(args),
            Err(_) => bail!("`{}` has {N} arguments", self.op.name()),
        }
    }

    /// Hands the gradients on to the arguments; what is returned is for candle to add up.
    pub(super) fn backward(&self, parts: &Tensor) -> Result<[Option<Tensor>; N]> {
        let grads = match self.carrier.take(parts.to_scalar::<f32>()? as usize)? {
            Some(grad) => {
                let Some(output) = self.output.get() else {
                    bail!("the backward pass of `{}` came before its forward pass", self.op.name())
                };
                self.op.gradients(&self.args, output, &grad.reshape(output.dims())?)?
            }
            None => {
                let zeros = |arg: &Tensor| arg.track_op().then(|| arg.zeros_like()).transpose();
                let mut grads = [const { None }; N];
                for ((grad, arg), carried) in grads.iter_mut().zip(&self.args).zip(&self.carried) {
                    *grad = if carried.is_none() { zeros(arg)? } else { None };
                }
                grads
            }
        };
        for (grad, arg) in grads.iter().zip(&self.args) {
            let Some(grad) = grad else { continue };
            if grad.dims() != arg.dims() || grad.dtype() != arg.dtype() {
                bail!(
                    "the gradient of `{}` has shape {:?} in {:?}, its argument {:?} in {:?}",
                    self.op.name(),
                    grad.dims(),
                    grad.dtype(),
                    arg.dims(),
                    arg.dtype()
                )
            }
        }
        let mut for_candle = [const { None }; N];
        for ((for_candle, grad), carried) in for_candle.iter_mut().zip(grads).zip(&self.carried) {
            *for_candle = match carried {
                Some(carried) => Some(carried.add(grad.as_ref())?),
                None => grad,
            };
        }
        Ok(for_candle)
    }
}

/// The node of the output.
pub(super) struct Attached<O, const N: usize> {
    pub(super) step: Arc<Step<O, N>>,
    pub(super) _registration: Registration,
}

impl<O: Op<N>, const N: usize> CustomOp1 for Attached<O, N> {
    fn name(&self) -> &'static str {
        self.step.op.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.step.forward()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        self.step.carrier.add(grad)?;
        Tensor::new(1f32, &Device::Cpu).map(Some)
    }
}

/// The node of the token.
pub(super) struct Token<O, const N: usize>(pub(super) Arc<Step<O, N>>);

fn scalar() -> (CpuStorage, Shape) {
    (CpuStorage::F32(vec![0.0]), Shape::from(()))
}

impl<O: Op<1>> CustomOp1 for Token<O, 1> {
    fn name(&self) -> &'static str {
        self.0.op.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(scalar())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, parts: &Tensor) -> Result<Option<Tensor>> {
        let [x] = self.0.backward(parts)?;
        Ok(x)
    }
}

impl<O: Op<2>> CustomOp2 for Token<O, 2> {
    fn name(&self) -> &'static str {
        self.0.op.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(scalar())
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        parts: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok(self.0.backward(parts)?.into())
    }
}

impl<O: Op<3>> CustomOp3 for Token<O, 3> {
    fn name(&self) -> &'static str {
        self.0.op.name()
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(scalar())
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        parts: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok(self.0.backward(parts)?.into())
    }
}
