//! Layer norm and RMS norm over the last dimension, each one op in both directions.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::constant::add_constant;
use super::cpu::norm::{add_parameter_gradients, input_gradient, normalise};
use super::cpu::real::Real;
use super::cpu::vector::add;
use super::elements::Elements;
use super::is_half_on_cpu;
use super::linear::contiguous_slice;
use super::scale::scale_features;

/// Rows whose shares of a parameter's gradient are added up by one task.
const ROWS_OF_TASK: usize = 32;

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
        if is_half_on_cpu(x) {
            return self.apply(&x.to_dtype(DType::F32)?, weight, bias)?.to_dtype(x.dtype());
        }
        let x = x.contiguous()?;
        let parameter = |tensor: &Tensor| tensor.to_dtype(x.dtype())?.contiguous();
        let weight = parameter(weight)?;
        match bias {
            Some(bias) => x.apply_op3(&weight, &parameter(bias)?, self),
            None => x.apply_op2(&weight, self),
        }
    }

    /// The same of candle's own differentiable ops.
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

    fn forward<T: Real>(self, x: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
        let width = weight.len().max(1);
        let mut y = vec![T::ZERO; x.len()];
        y.par_chunks_mut(width).zip(x.par_chunks(width)).for_each(|(y, x)| {
            normalise(y, x, weight, bias, T::of(self.eps), self.centred);
        });
        y
    }

    /// The gradients of input, weight and bias, of those that are part of a graph.
    fn gradients<T: Real>(
        self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let grad = grad.contiguous()?;
        let (x_elements, weight_elements, grad_elements) =
            (Elements::of(x), Elements::of(weight), Elements::of(&grad));
        let (values, dy) = (x_elements.as_slice::<T>()?, grad_elements.as_slice::<T>()?);
        let dx = match x.track_op() {
            true => {
                let dx = self.input_gradient(values, weight_elements.as_slice()?, dy);
                Some(Tensor::from_vec(dx, x.dims(), &Device::Cpu)?)
            }
            false => None,
        };
        let (weight_tracks, bias_tracks) = (weight.track_op(), bias.is_some_and(Tensor::track_op));
        if !weight_tracks && !bias_tracks {
            return Ok([dx, None, None]);
        }
        let width = weight.elem_count();
        let mut dweight = self.parameter_gradients(values, dy, width);
        let dbias = dweight.split_off(width);
        let tensor = |wanted: bool, values: Vec<T>| {
            wanted.then(|| Tensor::from_vec(values, width, &Device::Cpu)).transpose()
        };
        Ok([dx, tensor(weight_tracks, dweight)?, tensor(bias_tracks, dbias)?])
    }

    fn input_gradient<T: Real>(self, x: &[T], weight: &[T], dy: &[T]) -> Vec<T> {
        let width = weight.len().max(1);
        let mut dx = vec![T::ZERO; x.len()];
        let rows = dx.par_chunks_mut(width).zip(x.par_chunks(width).zip(dy.par_chunks(width)));
        rows.for_each(|(dx, (x, dy))| {
            input_gradient(dx, x, dy, weight, T::of(self.eps), self.centred);
        });
        dx
    }

    /// The gradients of weight and bias, one after the other. The order of additions does not depend on the threads.
    fn parameter_gradients<T: Real>(self, x: &[T], dy: &[T], width: usize) -> Vec<T> {
        let row = width.max(1);
        let task = ROWS_OF_TASK * row;
        let shares: Vec<Vec<T>> = x
            .par_chunks(task)
            .zip(dy.par_chunks(task))
            .map(|(x, dy)| {
                let mut share = vec![T::ZERO; 2 * width];
                let (dweight, dbias) = share.split_at_mut(width);
                for (x, dy) in x.chunks(row).zip(dy.chunks(row)) {
                    add_parameter_gradients(dweight, dbias, x, dy, T::of(self.eps), self.centred);
                }
                share
            })
            .collect();
        let mut sum = vec![T::ZERO; 2 * width];
        for share in &shares {
            add(&mut sum, share);
        }
        sum
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
        let y = match (x, weight) {
            (CpuStorage::F32(x), CpuStorage::F32(weight)) => {
                CpuStorage::F32(self.forward(contiguous_slice(x, xl)?, contiguous_slice(weight, wl)?, None))
            }
            (CpuStorage::F64(x), CpuStorage::F64(weight)) => {
                CpuStorage::F64(self.forward(contiguous_slice(x, xl)?, contiguous_slice(weight, wl)?, None))
            }
            (x, _) => bail!("a norm takes floats, not {:?}", x.dtype()),
        };
        Ok((y, xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dweight, _] = match x.dtype() {
            DType::F64 => self.gradients::<f64>(x, weight, None, grad)?,
            _ => self.gradients::<f32>(x, weight, None, grad)?,
        };
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
        let y = match (x, weight, bias) {
            (CpuStorage::F32(x), CpuStorage::F32(weight), CpuStorage::F32(bias)) => {
                let bias = contiguous_slice(bias, bl)?;
                let weight = contiguous_slice(weight, wl)?;
                CpuStorage::F32(self.forward(contiguous_slice(x, xl)?, weight, Some(bias)))
            }
            (CpuStorage::F64(x), CpuStorage::F64(weight), CpuStorage::F64(bias)) => {
                let bias = contiguous_slice(bias, bl)?;
                let weight = contiguous_slice(weight, wl)?;
                CpuStorage::F64(self.forward(contiguous_slice(x, xl)?, weight, Some(bias)))
            }
            (x, _, _) => bail!("a norm takes floats, not {:?}", x.dtype()),
        };
        Ok((y, xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dweight, dbias] = match x.dtype() {
            DType::F64 => self.gradients::<f64>(x, weight, Some(bias), grad)?,
            _ => self.gradients::<f32>(x, weight, Some(bias), grad)?,
        };
        Ok((dx, dweight, dbias))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Result, Tensor, Var};

    use super::{Norm, layer_norm, rms_norm};
    use crate::ops::gradcheck::{assert_agree, assert_differences, assert_precise, values};

    const EPS: f64 = 1e-5;

    fn inputs() -> Vec<Tensor> {
        // More rows than one task adds up, and a width with a tail after the lanes.
        vec![values("x", &[5, 9, 19]), values("weight", &[19]), values("bias", &[19])]
    }

    fn layer(t: &[Tensor]) -> Result<Tensor> {
        layer_norm(&t[0], &t[1], Some(&t[2]), EPS)
    }

    fn layer_without_bias(t: &[Tensor]) -> Result<Tensor> {
        layer_norm(&t[0], &t[1], None, EPS)
    }

    fn rms(t: &[Tensor]) -> Result<Tensor> {
        rms_norm(&t[0], &t[1], EPS)
    }

    #[test]
    fn value_and_gradients_are_those_of_the_composed_ops_and_of_difference_quotients() {
        let composed = |centred, t: &[Tensor]| Norm { eps: EPS, centred }.composed(&t[0], &t[1], t.get(2));
        let all = inputs();
        assert_agree(&layer, &|t| composed(true, t), &all, 1e-10, "layer norm");
        assert_agree(&layer_without_bias, &|t| composed(true, t), &all[..2], 1e-10, "layer norm, no bias");
        assert_agree(&rms, &|t| composed(false, t), &all[..2], 1e-10, "rms norm");
        assert_differences(&layer, &all, 1e-6, "layer norm");
        assert_differences(&rms, &all[..2], 1e-6, "rms norm");
    }

    #[test]
    fn strided_inputs_give_the_same() {
        let x = values("x", &[19, 6, 4]);
        let strided = |t: &[Tensor]| layer_norm(&t[0].transpose(0, 2)?, &t[1], Some(&t[2]), EPS);
        let copied =
            |t: &[Tensor]| layer_norm(&t[0].transpose(0, 2)?.force_contiguous()?, &t[1], Some(&t[2]), EPS);
        let all = [vec![x], inputs().split_off(1)].concat();
        assert_agree(&strided, &copied, &all, 1e-12, "strided");
        assert_differences(&strided, &all, 1e-6, "strided");
    }

    #[test]
    fn low_precision_is_near_f64() {
        for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::F16, 1e-2), (DType::BF16, 5e-2)] {
            assert_precise(&layer, &inputs(), dtype, tolerance, "layer norm");
            assert_precise(&rms, &inputs()[..2], dtype, tolerance, "rms norm");
        }
    }

    #[test]
    fn frozen_parameters_get_no_gradient_and_a_wrong_size_is_refused() {
        let [x, weight, bias] = [0, 1, 2].map(|index| inputs().swap_remove(index));
        let variable = Var::from_tensor(&x).unwrap();
        let y = layer_norm(&variable, &weight, Some(&bias), EPS).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&variable).is_some());
        assert!(grads.get(&weight).is_none() && grads.get(&bias).is_none());
        assert!(rms_norm(&x, &values("short", &[18]), EPS).is_err());
    }
}
