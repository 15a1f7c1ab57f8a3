//! Gradient checkpointing: the graph keeps only the input of a block, and the block is computed again in the backward pass.
//!
//! A candle op passes gradients only to its arguments, but the variables that a block trains are in its layers. So the
//! block's op has two arguments: the input, and all variables of the block in one flat tensor. candle's own backward
//! pass of that flat tensor splits the gradient again and passes the parts on to the variables.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, Layout, MetalStorage, Result, Shape, Storage, Tensor, Var,
    bail,
};

use crate::ops::graph::attach::with_gradient;
use crate::ops::graph::carried::ApplyCarried;
use crate::ops::graph::pass::Pass;
use crate::ops::promoted;
use crate::ops::random::draws::{recording, replaying};

/// `forward(x)`, of which the graph keeps only `x`. The backward pass computes `again(x)`, which has to be the same,
/// and uses its gradients, which are those of `forward(x)` with its whole graph.
///
/// All variables that `forward` uses get their gradients, including those behind tensors that it captures. Dropout
/// drops the same elements in both runs.
pub(crate) fn recomputed(
    x: &Tensor,
    forward: impl FnOnce(&Tensor) -> Result<Tensor>,
    again: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    // The first run keeps its graph briefly, to find out which variables the block trains.
    let (y, draws) = recording(|| forward(&x.detach()))?;
    let variables = variables_of(&y)?;
    if variables.is_empty() && !x.track_op() {
        return Ok(y);
    }
    let flat = if variables.is_empty() {
        Tensor::zeros(1, DType::F32, x.device())?
    } else {
        flattened(&variables, |var| Ok(var.as_tensor().clone()))?
    };
    let y = y.detach();
    // The storage is copied as it is, so it must begin with the output.
    let whole = y.is_contiguous() && y.layout().start_offset() == 0;
    let y = if whole { y } else { y.force_contiguous()? };
    x.carry_op2(&flat, Recomputed { again, draws, variables, output: Mutex::new(Some(y)) })
}

/// The variables that a tensor was computed from, in an order that its graph determines.
fn variables_of(y: &Tensor) -> Result<Vec<Var>> {
    let nodes = y.sorted_nodes().into_iter();
    let variables =
        nodes.filter(|node| node.is_variable() && node.dtype().is_float() && node.elem_count() > 0);
    variables.map(Var::from_tensor).collect()
}

/// One tensor for each variable, all in one vector, in a dtype that holds each of them without loss.
fn flattened(variables: &[Var], tensor: impl Fn(&Var) -> Result<Tensor>) -> Result<Tensor> {
    let dtypes = variables.iter().map(|var| var.dtype());
    let dtype = dtypes.reduce(promoted).unwrap_or(DType::F32);
    let flat = variables.iter().map(|var| tensor(var)?.flatten_all()?.to_dtype(dtype));
    Tensor::cat(&flat.collect::<Result<Vec<_>>>()?, 0)
}

struct Recomputed<F> {
    again: F,
    draws: Vec<u64>,
    /// What the flat argument consists of.
    variables: Vec<Var>,
    /// The output, until the op takes it.
    output: Mutex<Option<Tensor>>,
}

impl<F: Fn(&Tensor) -> Result<Tensor>> Recomputed<F> {
    /// candle lets an op return only new storage, hence the copy.
    fn take_output<S: BackendStorage>(&self, on_device: fn(&Storage) -> Option<&S>) -> Result<(S, Shape)> {
        let Some(y) = self.output.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("a block that is computed again has one forward pass")
        };
        let (storage, layout) = y.storage_and_layout();
        let Some(storage) = on_device(&storage) else {
            bail!("the input and the output of a block that is computed again are on two devices")
        };
        Ok((storage.try_clone(layout)?, layout.shape().clone()))
    }

    /// Computes the output again, with its graph.
    fn run_again(&self, x: &Tensor, first: &Tensor) -> Result<Tensor> {
        let y = replaying(self.draws.clone(), || (self.again)(x))?;
        // The input is a separate variable this time.
        let found: Vec<_> = variables_of(&y)?.iter().map(|var| var.id()).filter(|id| *id != x.id()).collect();
        if found.len() != self.variables.len() || !self.variables.iter().all(|var| found.contains(&var.id()))
        {
            bail!("a block trains other variables when it is computed again in the backward pass")
        }
        if !is_close(&y.detach(), &first.detach())? {
            bail!(
                "a block computes something else when it is computed again in the backward pass; \
                 does it draw unseeded random numbers, as candle's own dropout does?"
            )
        }
        Ok(y)
    }
}

/// Whether two runs gave the same result, up to the order of sums. Compares only on the CPU: other devices would have
/// to be waited for.
fn is_close(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.dims() != b.dims() || a.dtype() != b.dtype() {
        return Ok(false);
    }
    if !a.device().is_cpu() || a.elem_count() == 0 {
        return Ok(true);
    }
    let size = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.abs()?.max_all()?.to_scalar::<f32>();
    let tolerance = if matches!(a.dtype(), DType::F16 | DType::BF16) { 2e-2 } else { 1e-4 };
    let distance = size(&(a - b)?)?;
    // Outputs that are NaN in the same place are not an error here.
    Ok(distance.is_nan() || distance <= tolerance * size(b)?)
}

impl<F: Fn(&Tensor) -> Result<Tensor>> CustomOp2 for Recomputed<F> {
    fn name(&self) -> &'static str {
        "recomputed-block"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take_output(|storage| match storage {
            Storage::Cpu(storage) => Some(storage),
            _ => None,
        })
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.take_output(|storage| match storage {
            Storage::Cuda(storage) => Some(storage),
            _ => None,
        })
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.take_output(|storage| match storage {
            Storage::Metal(storage) => Some(storage),
            _ => None,
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        _: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let input = if x.track_op() { Var::from_tensor(&x.detach())?.into_inner() } else { x.detach() };
        let output = self.run_again(&input, y)?;
        let grad = grad.clone();
        // A scalar whose gradient with respect to the output is the incoming gradient.
        let end = Tensor::zeros((), output.dtype(), output.device())?;
        let end = with_gradient(&output, end, move |_| Ok(grad.clone()))?;
        let mut grads = Pass::nested(|| end.backward())?;
        drop(output);
        // candle's gradients may be part of a graph themselves, which would keep the activations alive.
        let grad_x = if x.track_op() { grads.remove(&input).map(|grad| grad.detach()) } else { None };
        if self.variables.is_empty() {
            return Ok((grad_x, None));
        }
        let of_variable =
            |var: &Var| grads.get(var).map_or_else(|| var.zeros_like(), |grad| Ok(grad.detach()));
        Ok((grad_x, Some(flattened(&self.variables, of_variable)?)))
    }
}

#[cfg(test)]
mod tests;
