//! Gives a result that candle computed outside the graph a gradient of its own.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, MetalStorage, Result, Shape, Tensor};

use crate::ops::graph::carried::ApplyCarried;

/// `y`, with `gradient` as its backward pass to `x`: it maps the gradient of `y` to that of `x`.
///
/// `y` must depend on variables only through `x`. Where `x` is not part of a graph, `y` is returned as it is.
pub(crate) fn with_gradient<G>(x: &Tensor, y: Tensor, gradient: G) -> Result<Tensor>
where
    G: Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    if !x.track_op() {
        return Ok(y);
    }
    // The copy below starts where the storage does.
    let at_start = y.is_contiguous() && y.layout().start_offset() == 0;
    let y = if at_start { y } else { y.force_contiguous()? };
    x.carry_op2(&y, Attached(gradient))
}

struct Attached<G>(G);

/// candle lets an op return only new storage, hence the copy.
fn copy<S: BackendStorage>(storage: &S, layout: &Layout) -> Result<(S, Shape)> {
    Ok((storage.try_clone(layout)?, layout.shape().clone()))
}

impl<G: Fn(&Tensor) -> Result<Tensor>> CustomOp2 for Attached<G> {
    fn name(&self) -> &'static str {
        "attached-gradient"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        y: &CpuStorage,
        layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        copy(y, layout)
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        y: &CudaStorage,
        layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        copy(y, layout)
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        y: &MetalStorage,
        layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        copy(y, layout)
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(self.0(grad)?), None))
    }
}
