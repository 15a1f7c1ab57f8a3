//! The frozen convolution: a gradient for the input alone.

use candle_core::{DType, Result, Tensor, bail};

use super::attach::with_gradient;
use super::is_half_on_cpu;

/// The geometry of a convolution; the same in both dimensions of a two-dimensional one, as candle has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvSettings {
    /// Zeros added on each side.
    pub padding: usize,
    /// The step between windows.
    pub stride: usize,
    /// The step between the elements of a window.
    pub dilation: usize,
    /// The number of groups that channels are split into.
    pub groups: usize,
}

/// The convolution of `x` (`[batch, in, length]` or `[batch, in, height, width]`) with a kernel of the same rank
/// (`[out, in / groups, …]`).
///
/// A kernel that is a variable trains through candle's own ops; a frozen one never gets a gradient. Half precision on
/// the CPU is computed in f32 and rounded once.
pub(crate) fn conv(x: &Tensor, kernel: &Tensor, settings: ConvSettings) -> Result<Tensor> {
    check_input(x, kernel, settings)?;
    if is_half_on_cpu(x) {
        let y = conv(&x.to_dtype(DType::F32)?, &kernel.to_dtype(DType::F32)?, settings)?;
        return y.to_dtype(x.dtype());
    }
    if kernel.track_op() {
        return convolve(x, kernel, settings);
    }
    let kernel = kernel.detach().contiguous()?;
    let y = convolve(&x.detach(), &kernel, settings)?;
    let input_dims = x.dims().to_vec();
    with_gradient(x, y, move |grad| input_gradient(grad, &kernel, &input_dims, settings))
}

fn check_input(x: &Tensor, kernel: &Tensor, settings: ConvSettings) -> Result<()> {
    let (input, window) = (x.dims(), kernel.dims());
    if input.len() != window.len()
        || !(3..=4).contains(&window.len())
        || input[1] != window[1] * settings.groups
    {
        let channels = window.get(1).map_or(0, |channels| channels * settings.groups);
        bail!(
            "a convolution with {channels} input channels and kernel {window:?} cannot take an input of shape {input:?}"
        )
    }
    for (size, window) in input.iter().zip(window).skip(2) {
        let reach = settings.dilation * window.saturating_sub(1) + 1;
        if size + 2 * settings.padding < reach {
            bail!(
                "a window that reaches over {reach} elements is larger than the padded input of shape {input:?}"
            )
        }
    }
    Ok(())
}

/// candle's own convolution, which is differentiable in both operands.
fn convolve(x: &Tensor, kernel: &Tensor, settings: ConvSettings) -> Result<Tensor> {
    let ConvSettings { padding, stride, dilation, groups } = settings;
    if kernel.rank() == 3 {
        x.conv1d(kernel, padding, stride, dilation, groups)
    } else {
        x.conv2d(kernel, padding, stride, dilation, groups)
    }
}

/// The transposed convolution of the gradient with the same kernel, group by group.
fn input_gradient(grad: &Tensor, kernel: &Tensor, input: &[usize], settings: ConvSettings) -> Result<Tensor> {
    let grad = grad.contiguous()?;
    if settings.groups == 1 {
        return group_gradient(&grad, kernel, input, settings);
    }
    let mut group_input = input.to_vec();
    group_input[1] /= settings.groups;
    let (grads, kernels) = (grad.chunk(settings.groups, 1)?, kernel.chunk(settings.groups, 0)?);
    let gradients = grads.iter().zip(&kernels).map(|(grad, kernel)| {
        group_gradient(&grad.contiguous()?, &kernel.contiguous()?, &group_input, settings)
    });
    Tensor::cat(&gradients.collect::<Result<Vec<_>>>()?, 1)
}

fn group_gradient(grad: &Tensor, kernel: &Tensor, input: &[usize], settings: ConvSettings) -> Result<Tensor> {
    let ConvSettings { padding, stride, dilation, .. } = settings;
    // Windows of a stride above 1 may leave the last elements of the input untouched.
    let untouched = |dim: usize| -> Result<usize> {
        let touched = (grad.dim(dim)? - 1) * stride + dilation * (kernel.dim(dim)? - 1) + 1;
        Ok((input[dim] + 2 * padding).saturating_sub(touched))
    };
    if kernel.rank() == 3 {
        return grad.conv_transpose1d(kernel, padding, untouched(2)?, stride, dilation, 1);
    }
    // candle has one output padding for both dimensions: the larger one, cut back where it is too much.
    let rest = untouched(2)?.max(untouched(3)?);
    let gradient = grad.conv_transpose2d(kernel, padding, rest, stride, dilation)?;
    gradient.narrow(2, 0, input[2])?.narrow(3, 0, input[3])?.contiguous()
}
