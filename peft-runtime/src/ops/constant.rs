//! Sums, products and quotients with a constant tensor: candle's own ops keep a gradient for the constant as well.

use candle_core::backend::BackendStorage;
use candle_core::op::{Add, BinaryOpT, Div, Mul};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, MetalStorage, Result, Shape, Storage, Tensor, bail,
};

use crate::ops::graph::carried::ApplyCarried;

/// `x + constant`, with a gradient only for `x`; the shapes are equal.
pub(crate) fn add_constant(x: &Tensor, constant: &Tensor) -> Result<Tensor> {
    if !x.track_op() {
        return x + constant;
    }
    x.carry_op1(WithConstant { constant: constant.detach(), op: Op::Add })
}

/// `x ∘ constant`, with a gradient only for `x`; the shapes are equal.
pub(crate) fn mul_constant(x: &Tensor, constant: &Tensor) -> Result<Tensor> {
    if !x.track_op() {
        return x * constant;
    }
    x.carry_op1(WithConstant { constant: constant.detach(), op: Op::Mul })
}

/// `x / constant` element by element, with a gradient only for `x`; the shapes are equal.
pub(crate) fn div_constant(x: &Tensor, constant: &Tensor) -> Result<Tensor> {
    if !x.track_op() {
        return x / constant;
    }
    x.carry_op1(WithConstant { constant: constant.detach(), op: Op::Div })
}

struct WithConstant {
    constant: Tensor,
    op: Op,
}

enum Op {
    Add,
    Mul,
    Div,
}

impl WithConstant {
    fn forward_on<S: BackendStorage>(
        &self,
        x: &S,
        layout: &Layout,
        on_device: fn(&Storage) -> Option<&S>,
    ) -> Result<(S, Shape)> {
        let (storage, constant_layout) = self.constant.storage_and_layout();
        let Some(constant) = on_device(&storage) else {
            bail!("the operands of a sum or product are on two devices")
        };
        if layout.shape() != constant_layout.shape() {
            bail!("the operands have shapes {:?} and {:?}", layout.dims(), constant_layout.dims())
        }
        let y = match self.op {
            Op::Add => binary::<Add, S>(x, layout, constant, constant_layout)?,
            Op::Mul => binary::<Mul, S>(x, layout, constant, constant_layout)?,
            Op::Div => binary::<Div, S>(x, layout, constant, constant_layout)?,
        };
        Ok((y, layout.shape().clone()))
    }
}

fn binary<B: BinaryOpT, S: BackendStorage>(
    lhs: &S,
    lhs_layout: &Layout,
    rhs: &S,
    rhs_layout: &Layout,
) -> Result<S> {
    lhs.binary_impl::<B>(rhs, lhs_layout, rhs_layout)
}

impl CustomOp1 for WithConstant {
    fn name(&self) -> &'static str {
        "with-constant"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward_on(storage, layout, |storage| match storage {
            Storage::Cpu(storage) => Some(storage),
            _ => None,
        })
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.forward_on(storage, layout, |storage| match storage {
            Storage::Cuda(storage) => Some(storage),
            _ => None,
        })
    }

    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        self.forward_on(storage, layout, |storage| match storage {
            Storage::Metal(storage) => Some(storage),
            _ => None,
        })
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(match self.op {
            Op::Add => grad.clone(),
            Op::Mul => (grad * &self.constant)?,
            Op::Div => (grad / &self.constant)?,
        }))
    }
}
