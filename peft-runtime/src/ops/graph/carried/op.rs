//! candle's ops of one, two and three arguments as one trait.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

/// A candle op of N arguments.
pub(super) trait Op<const N: usize>: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    fn forward(&self, args: [(&CpuStorage, &Layout); N]) -> Result<(CpuStorage, Shape)>;

    fn gradients(&self, args: &[Tensor; N], y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; N]>;
}

pub(super) struct One<O>(pub(super) O);
pub(super) struct Two<O>(pub(super) O);
pub(super) struct Three<O>(pub(super) O);

impl<O: CustomOp1 + Send + Sync + 'static> Op<1> for One<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn forward(&self, [(x, xl)]: [(&CpuStorage, &Layout); 1]) -> Result<(CpuStorage, Shape)> {
        self.0.cpu_fwd(x, xl)
    }

    fn gradients(&self, [x]: &[Tensor; 1], y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        Ok([self.0.bwd(x, y, grad)?])
    }
}

impl<O: CustomOp2 + Send + Sync + 'static> Op<2> for Two<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn forward(&self, [(a, al), (b, bl)]: [(&CpuStorage, &Layout); 2]) -> Result<(CpuStorage, Shape)> {
        self.0.cpu_fwd(a, al, b, bl)
    }

    fn gradients(&self, [a, b]: &[Tensor; 2], y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        Ok(self.0.bwd(a, b, y, grad)?.into())
    }
}

impl<O: CustomOp3 + Send + Sync + 'static> Op<3> for Three<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn forward(
        &self,
        [(a, al), (b, bl), (c, cl)]: [(&CpuStorage, &Layout); 3],
    ) -> Result<(CpuStorage, Shape)> {
        self.0.cpu_fwd(a, al, b, bl, c, cl)
    }

    fn gradients(&self, [a, b, c]: &[Tensor; 3], y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 3]> {
        Ok(self.0.bwd(a, b, c, y, grad)?.into())
    }
}
