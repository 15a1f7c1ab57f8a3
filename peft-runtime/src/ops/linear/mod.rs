//! The frozen linear map: y = x·Wᵀ + b with a gradient only for x.

mod base;
mod bias;
mod frozen;
pub(crate) mod input;
pub(crate) mod low_rank;
pub(crate) mod quantized;
pub(crate) mod residual;
mod trainable;

use candle_core::{Result, Tensor, bail};

use self::bias::with_bias_gradient;
use self::frozen::FrozenLinear;
use self::trainable::trainable_linear;
use crate::ops::graph::attach::with_gradient;
use crate::ops::graph::carried::ApplyCarried;
use crate::ops::{add_promoted, is_at_most_f32, widened};

/// `x·Wᵀ + b` for `x` of shape `[…, in]` and `weight` of shape `[out, in]` with any strides.
///
/// A weight or bias that is a variable trains through candle's own ops; a frozen one never gets a gradient.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use peft_runtime::nn::linear_forward;
///
/// let weight = Tensor::new(&[[1f32, 2.], [3., 4.], [5., 6.]], &Device::Cpu)?;
/// let y = linear_forward(&Tensor::new(&[[10f32, 100.]], &Device::Cpu)?, &weight, None)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[210., 430., 650.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If `x` does not end in the weight's input size.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (rows, dims) = check_input(x, weight)?;
    let has_kernel = x.device().is_cpu() && [x.dtype(), weight.dtype()].into_iter().all(is_at_most_f32);
    if x.dtype() != weight.dtype() && !has_kernel {
        let wide = widened(x)?;
        let bias = bias.map(|bias| bias.to_dtype(wide.dtype())).transpose()?;
        return linear(&wide, &weight.to_dtype(wide.dtype())?, bias.as_ref())?.to_dtype(x.dtype());
    }
    if weight.track_op() && has_kernel {
        return trainable_linear(x, weight, bias);
    }
    if weight.track_op() {
        let y = x.reshape((rows, weight.dim(1)?))?.matmul(&weight.t()?)?.reshape(dims)?;
        return add_bias(y, bias);
    }
    match bias {
        Some(bias) if bias.track_op() => with_bias_gradient(&frozen_linear(x, weight, Some(bias))?, bias),
        bias => frozen_linear(x, weight, bias),
    }
}

fn frozen_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let op = FrozenLinear { weight: weight.detach(), bias: bias.map(Tensor::detach) };
    let x = x.contiguous()?;
    if x.device().is_cpu() {
        return x.carry_op1(op);
    }
    let (rows, dims) = check_input(&x, weight)?;
    let y = x.detach().reshape((rows, weight.dim(1)?))?.matmul(&op.weight.t()?)?.reshape(dims)?;
    let y = add_bias(y, op.bias.as_ref())?;
    let input_dims = x.dims().to_vec();
    with_gradient(&x, y, move |grad| op.input_gradient(grad, &input_dims))
}

pub(super) fn add_bias(y: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => add_promoted(&y, &bias.broadcast_as(y.shape())?),
        None => Ok(y),
    }
}

/// The number of rows of `x` and the dims of the output; an error if `x` does not end in the layer's input size.
pub(super) fn check_input(x: &Tensor, weight: &Tensor) -> Result<(usize, Vec<usize>)> {
    output_dims(x, weight.dims2()?)
}

/// [`check_input`] for a weight of shape `(out, in)`.
pub(super) fn output_dims(
    x: &Tensor,
    (out_features, in_features): (usize, usize),
) -> Result<(usize, Vec<usize>)> {
    let mut dims = x.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == in_features => *last = out_features,
        _ => bail!(
            "a linear layer with {in_features} input features cannot take an input of shape {:?}",
            x.dims()
        ),
    }
    let rows = dims[..dims.len() - 1].iter().product();
    Ok((rows, dims))
}

#[cfg(test)]
mod tests;
