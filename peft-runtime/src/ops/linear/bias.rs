//! Biases of layers whose weight is frozen; they may train.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, MetalStorage, Result, Shape, Tensor};

use crate::ops::cpu::real::Real;
use crate::ops::cpu::slices::add;
use crate::ops::graph::carried::ApplyCarried;
use crate::ops::widened;

/// Adds the bias to every row of `y`.
pub(super) fn add_bias_rows<T: Real>(y: &mut [T], bias: Option<&Tensor>) -> Result<()> {
    if let Some(bias) = bias {
        let bias = bias.to_dtype(T::DTYPE)?.to_vec1::<T>()?;
        y.chunks_mut(bias.len().max(1)).for_each(|row| add(row, &bias));
    }
    Ok(())
}

/// `y`, which has the values of the bias in it already, with a gradient for the bias: the sum over all rows, in f32 or wider.
pub(super) fn with_bias_gradient(y: &Tensor, bias: &Tensor) -> Result<Tensor> {
    y.contiguous()?.carry_op2(bias, BiasGradient)
}

struct BiasGradient;

/// candle lets an op return only new storage, hence the copy.
fn copy<S: BackendStorage>(storage: &S, layout: &Layout) -> Result<(S, Shape)> {
    Ok((storage.try_clone(layout)?, layout.shape().clone()))
}

impl CustomOp2 for BiasGradient {
    fn name(&self) -> &'static str {
        "bias-gradient"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        copy(y, layout)
    }

    fn cuda_fwd(
        &self,
        y: &CudaStorage,
        layout: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        copy(y, layout)
    }

    fn metal_fwd(
        &self,
        y: &MetalStorage,
        layout: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        copy(y, layout)
    }

    fn bwd(
        &self,
        y: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let rows = widened(grad)?.reshape(((), bias.elem_count()))?;
        let sum = rows.sum(0)?.to_dtype(bias.dtype())?;
        Ok((y.track_op().then(|| grad.clone()), Some(sum)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor, Var};

    use crate::ops::linear::linear;
    use crate::ops::testing::{assert_agree, random};

    #[test]
    fn value_and_gradients_are_those_of_the_sum() {
        let (weight, x, bias) = (random("w", &[3, 4]), random("x", &[2, 5, 4]), random("b", &[3]));
        let frozen = weight.detach();
        let ours = |t: &[Tensor]| linear(&t[0], &frozen, Some(&t[1]));
        let theirs = |t: &[Tensor]| linear(&t[0], &frozen, None)?.broadcast_add(&t[1]);
        assert_agree(&ours, &theirs, &[x, bias], 1e-12, "a bias that trains");
    }

    /// 1000 rows of a gradient of 1 + 2⁻⁷ add up to 1007.8125; a sum in bf16 stays at 256, where adding 1 rounds back to it.
    #[test]
    fn the_gradient_of_a_bias_in_half_precision_is_summed_in_f32() {
        let weight = Tensor::zeros((1, 2), DType::BF16, &Device::Cpu).unwrap();
        let x = Tensor::ones((1000, 2), DType::BF16, &Device::Cpu).unwrap();
        let bias = Var::zeros(1, DType::BF16, &Device::Cpu).unwrap();
        let y = linear(&x, &weight, Some(bias.as_tensor())).unwrap().to_dtype(DType::F32).unwrap();
        let grads = (y * (1.0 + 1.0 / 128.0)).unwrap().sum_all().unwrap().backward().unwrap();
        let grad = grads.get(&bias).unwrap();
        assert_eq!(grad.dtype(), DType::BF16);
        assert_eq!(grad.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap(), [1008.0]);
    }
}
