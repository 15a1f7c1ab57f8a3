//! Scaling along the feature dimension by a vector: y = x ⊙ v.

use candle_core::backend::BackendStorage;
use candle_core::op::Mul;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, MetalStorage, Result, Shape, Tensor};

use crate::ops::graph::carried::ApplyCarried;

/// `x ⊙ v` with `v` of shape `[features]` along dimension `axis` of `x`, in the promoted dtype.
///
/// An operand that is not part of a graph gets no gradient.
pub(crate) fn scale_features(x: &Tensor, v: &Tensor, axis: usize) -> Result<Tensor> {
    let dtype = super::promoted(x.dtype(), v.dtype());
    let (x, v) = (x.to_dtype(dtype)?, v.to_dtype(dtype)?);
    x.carry_op2(&v, ScaleFeatures { axis: axis.min(x.rank().saturating_sub(1)) })
}

struct ScaleFeatures {
    axis: usize,
}

impl ScaleFeatures {
    /// The layout of the vector, broadcast to the input's shape.
    fn broadcast(&self, x: &Layout, v: &Layout) -> Result<Layout> {
        let features = v.shape().dims1()?;
        if x.dims().get(self.axis) != Some(&features) {
            candle_core::bail!(
                "{features} factors do not fit dimension {} of shape {:?}",
                self.axis,
                x.dims()
            )
        }
        let mut strides = vec![0; x.dims().len()];
        strides[self.axis] = v.stride()[0];
        Ok(Layout::new(x.shape().clone(), strides, v.start_offset()))
    }

    fn forward_on<S: BackendStorage>(
        &self,
        x: &S,
        x_layout: &Layout,
        v: &S,
        v_layout: &Layout,
    ) -> Result<(S, Shape)> {
        let v_layout = self.broadcast(x_layout, v_layout)?;
        Ok((x.binary_impl::<Mul>(v, x_layout, &v_layout)?, x_layout.shape().clone()))
    }
}

impl CustomOp2 for ScaleFeatures {
    fn name(&self) -> &'static str {
        "scale-features"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward_on(x, xl, v, vl)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        v: &CudaStorage,
        vl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.forward_on(x, xl, v, vl)
    }

    fn metal_fwd(
        &self,
        x: &MetalStorage,
        xl: &Layout,
        v: &MetalStorage,
        vl: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.forward_on(x, xl, v, vl)
    }

    /// dx = dy ⊙ v; dv = Σ dy ∘ x over everything but the features.
    fn bwd(
        &self,
        x: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = match x.track_op() {
            true => Some(scale_features(grad, &v.detach(), self.axis)?),
            false => None,
        };
        let dv = match v.track_op() {
            true => {
                let products = (grad * x.detach())?;
                let others: Vec<usize> = (0..x.rank()).filter(|axis| *axis != self.axis).collect();
                let wide = if matches!(products.dtype(), DType::F16 | DType::BF16) {
                    DType::F32
                } else {
                    products.dtype()
                };
                Some(products.to_dtype(wide)?.sum(others)?.to_dtype(v.dtype())?)
            }
            false => None,
        };
        Ok((dx, dv))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;

    use super::scale_features;
    use crate::ops::testing::{assert_agree, random};

    #[test]
    fn value_and_gradients_are_those_of_the_composed_product() {
        for (shape, axis) in [(vec![4, 3, 5], 2), (vec![2, 5, 3, 3], 1), (vec![5], 0)] {
            let mut broad = vec![1; shape.len()];
            broad[axis] = 5;
            let ours = |t: &[Tensor]| scale_features(&t[0], &t[1], axis);
            let theirs = |t: &[Tensor]| t[0].broadcast_mul(&t[1].reshape(broad.as_slice())?);
            let inputs = [random("x", &shape), random("v", &[5])];
            assert_agree(&ours, &theirs, &inputs, 1e-12, &format!("{shape:?}"));
        }
    }
}
