//! Layer norm and RMS norm over the last dimension, each one op in both directions.

mod backward;
mod kernel;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};
use half::{bf16, f16};

use self::kernel::normalise;
use crate::ops::constant::add_constant;
use crate::ops::cpu::float::{Float, wide_dtype};
use crate::ops::cpu::real::Real;
use crate::ops::cpu::threads::for_each_with;
use crate::ops::elements::contiguous_slice;
use crate::ops::graph::carried::ApplyCarried;
use crate::ops::scale::scale_features;

/// `(x − mean) / √(variance + eps) · weight + bias`, in the dtype of `x`. <https://arxiv.org/abs/1607.06450>
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    check_sizes(x, weight, bias)?;
    Norm { eps, centred: true }.apply(x, weight, bias)
}

/// `x / √(mean(x²) + eps) · weight`, in the dtype of `x`. <https://arxiv.org/abs/1910.07467>
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check_sizes(x, weight, None)?;
    Norm { eps, centred: false }.apply(x, weight, None)
}

fn check_sizes(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    for parameter in [Some(weight), bias].into_iter().flatten() {
        if x.dims().last() != Some(&parameter.dims1()?) {
            bail!(
                "a norm with a parameter of shape {:?} cannot take an input of shape {:?}",
                parameter.dims(),
                x.dims()
            )
        }
    }
    Ok(())
}

/// The op; an RMS norm is one that is not centred.
#[derive(Clone, Copy, Debug)]
struct Norm {
    eps: f64,
    centred: bool,
}

impl Norm {
    /// Half precision on the CPU is computed in f32 and rounded once.
    fn apply(self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        if !x.device().is_cpu() {
            return self.composed(x, weight, bias);
        }
        let x = x.contiguous()?;
        let parameter = |tensor: &Tensor| tensor.to_dtype(wide_dtype(x.dtype()))?.contiguous();
        let weight = parameter(weight)?;
        match bias {
            Some(bias) => x.carry_op3(&weight, &parameter(bias)?, self),
            None => x.carry_op2(&weight, self),
        }
    }

    /// The norm from candle's own differentiable ops.
    fn composed(self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let internal = match x.dtype() {
            DType::F16 | DType::BF16 => DType::F32,
            dtype => dtype,
        };
        let wide = x.to_dtype(internal)?;
        let centred = match self.centred {
            true => wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?,
            false => wide,
        };
        let mean_square = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normalised = centred.broadcast_div(&(mean_square + self.eps)?.sqrt()?)?;
        let y = scale_features(&normalised, &weight.to_dtype(internal)?, x.rank() - 1)?;
        let y = match bias {
            Some(bias) if bias.track_op() => y.broadcast_add(&bias.to_dtype(internal)?)?,
            Some(bias) => add_constant(&y, &bias.to_dtype(internal)?.broadcast_as(y.shape())?)?,
            None => y,
        };
        y.to_dtype(x.dtype())
    }

    fn forward<T: Float>(self, x: &[T], weight: &[T::Wide], bias: Option<&[T::Wide]>) -> Vec<T> {
        let width = weight.len().max(1);
        let mut y = vec![T::from_f64(0.0); x.len()];
        let rows = y.chunks_mut(width).zip(x.chunks(width));
        for_each_with(rows, <(Vec<_>, Vec<_>)>::default, |(wide_x, wide_y), (y, x)| {
            let x = T::read(x, wide_x);
            let eps = T::Wide::of(self.eps);
            T::write(y, wide_y, |y| normalise(y, x, weight, bias, eps, self.centred));
        });
        y
    }

    /// The forward pass for a weight and, perhaps, a bias in the wide type.
    fn values<T: Float>(
        self,
        (x, xl): (&[T], &Layout),
        (weight, wl): (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<CpuStorage> {
        let weight = contiguous_slice(weight.as_slice::<T::Wide>()?, wl)?;
        let bias = match bias {
            Some((bias, bl)) => Some(contiguous_slice(bias.as_slice::<T::Wide>()?, bl)?),
            None => None,
        };
        Ok(T::to_cpu_storage_owned(self.forward(contiguous_slice(x, xl)?, weight, bias)))
    }

    fn forward_storage(
        self,
        (x, xl): (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let y = match x {
            CpuStorage::F32(x) => self.values((x, xl), weight, bias)?,
            CpuStorage::F64(x) => self.values((x, xl), weight, bias)?,
            CpuStorage::F16(x) => self.values((x, xl), weight, bias)?,
            CpuStorage::BF16(x) => self.values((x, xl), weight, bias)?,
            x => bail!("a norm takes floats, not {:?}", x.dtype()),
        };
        Ok((y, xl.shape().clone()))
    }

    fn gradients_of(
        self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        match x.dtype() {
            DType::F64 => self.gradients::<f64>(x, weight, bias, grad),
            DType::F16 => self.gradients::<f16>(x, weight, bias, grad),
            DType::BF16 => self.gradients::<bf16>(x, weight, bias, grad),
            _ => self.gradients::<f32>(x, weight, bias, grad),
        }
    }
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        weight: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward_storage((x, xl), (weight, wl), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dweight, _] = self.gradients_of(x, weight, None, grad)?;
        Ok((dx, dweight))
    }
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "norm-with-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        weight: &CpuStorage,
        wl: &Layout,
        bias: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward_storage((x, xl), (weight, wl), Some((bias, bl)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dweight, dbias] = self.gradients_of(x, weight, Some(bias), grad)?;
        Ok((dx, dweight, dbias))
    }
}

#[cfg(test)]
mod tests;
