//! Convolutions: a frozen kernel never gets a gradient.
//!
//! On the CPU, both passes are our own: the backward pass of candle 0.11.1 goes through its transposed one-dimensional
//! convolution, which is wrong for batches of more than one.

mod kernel;
mod unfold;

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use half::{bf16, f16};

use self::kernel::Sizes;
use crate::ops::elements::contiguous_slice;
use crate::ops::graph::attach::with_gradient;
use crate::ops::graph::carried::ApplyCarried;
use crate::ops::is_half_on_cpu;

pub use self::kernel::ConvSettings;

/// [`conv`] with a bias `[out]`, all in half precision on the CPU: bias and sum are rounded together. `None` if they are not.
pub(crate) fn half_conv_with_bias(
    x: &Tensor,
    kernel: &Tensor,
    bias: &Tensor,
    settings: ConvSettings,
) -> Result<Option<Tensor>> {
    if !is_half_on_cpu(x) || kernel.dtype() != x.dtype() || bias.track_op() {
        return Ok(None);
    }
    check_input(x.dims(), kernel.dims(), settings)?;
    if bias.dims() != [kernel.dim(0)?] {
        bail!("a bias of shape {:?} does not fit a kernel of shape {:?}", bias.dims(), kernel.dims())
    }
    let bias = Some(bias.to_dtype(DType::F32)?.to_vec1()?);
    x.contiguous()?.carry_op2(&kernel.contiguous()?, Conv { settings, bias }).map(Some)
}

/// The convolution of `x` (`[batch, in, length]` or `[batch, in, height, width]`) with a kernel of the same rank
/// (`[out, in / groups, …]`). Half precision on the CPU is computed in f32 and rounded once.
pub(crate) fn conv(x: &Tensor, kernel: &Tensor, settings: ConvSettings) -> Result<Tensor> {
    check_input(x.dims(), kernel.dims(), settings)?;
    if is_half_on_cpu(x) && kernel.dtype() != x.dtype() {
        let y = conv(&x.to_dtype(DType::F32)?, &kernel.to_dtype(DType::F32)?, settings)?;
        return y.to_dtype(x.dtype());
    }
    if x.device().is_cpu() {
        return x.contiguous()?.carry_op2(&kernel.contiguous()?, Conv { settings, bias: None });
    }
    if kernel.track_op() {
        return convolve(x, kernel, settings);
    }
    let kernel = kernel.detach().contiguous()?;
    let y = convolve(&x.detach(), &kernel, settings)?;
    let (probe, kernel_shape) = (x.detach(), kernel.clone());
    with_gradient(x, y, move |grad| {
        // candle's own backward pass, on a graph that holds only the input.
        let input = candle_core::Var::from_tensor(&probe)?;
        let y = convolve(&input, &kernel_shape, settings)?;
        let grads = (y * grad)?.sum_all()?.backward()?;
        grads.get(&input).cloned().map_or_else(|| probe.zeros_like(), Ok)
    })
}

fn check_input(input: &[usize], kernel: &[usize], settings: ConvSettings) -> Result<()> {
    if input.len() != kernel.len()
        || !(3..=4).contains(&kernel.len())
        || input[1] != kernel[1] * settings.groups
    {
        let channels = kernel.get(1).map_or(0, |channels| channels * settings.groups);
        bail!(
            "a convolution with {channels} input channels and kernel {kernel:?} cannot take an input of shape {input:?}"
        )
    }
    for (size, kernel) in input.iter().zip(kernel).skip(2) {
        let reach = settings.dilation * kernel.saturating_sub(1) + 1;
        if size + 2 * settings.padding < reach {
            bail!(
                "a window that reaches over {reach} elements is larger than the padded input of shape {input:?}"
            )
        }
    }
    Ok(())
}

fn convolve(x: &Tensor, kernel: &Tensor, settings: ConvSettings) -> Result<Tensor> {
    let ConvSettings { padding, stride, dilation, groups } = settings;
    if kernel.rank() == 3 {
        x.conv1d(kernel, padding, stride, dilation, groups)
    } else {
        x.conv2d(kernel, padding, stride, dilation, groups)
    }
}

/// The op on the CPU.
struct Conv {
    settings: ConvSettings,
    /// For half precision only.
    bias: Option<Vec<f32>>,
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        kernel: &CpuStorage,
        kernel_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::new(x_layout.dims(), kernel_layout.dims(), self.settings);
        let bias = self.bias.as_deref();
        let y = match (x, kernel) {
            (CpuStorage::F32(x), CpuStorage::F32(kernel)) => {
                let kernel = contiguous_slice(kernel, kernel_layout)?;
                CpuStorage::F32(sizes.forward(contiguous_slice(x, x_layout)?, kernel, None)?)
            }
            (CpuStorage::F64(x), CpuStorage::F64(kernel)) => {
                let kernel = contiguous_slice(kernel, kernel_layout)?;
                CpuStorage::F64(sizes.forward(contiguous_slice(x, x_layout)?, kernel, None)?)
            }
            (CpuStorage::F16(x), CpuStorage::F16(kernel)) => {
                let kernel = contiguous_slice(kernel, kernel_layout)?;
                CpuStorage::F16(sizes.forward(contiguous_slice(x, x_layout)?, kernel, bias)?)
            }
            (CpuStorage::BF16(x), CpuStorage::BF16(kernel)) => {
                let kernel = contiguous_slice(kernel, kernel_layout)?;
                CpuStorage::BF16(sizes.forward(contiguous_slice(x, x_layout)?, kernel, bias)?)
            }
            _ => bail!("a convolution takes an input and a kernel of floats of one dtype"),
        };
        Ok((y, Shape::from(sizes.output_shape(x_layout.dims().len()))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sizes = Sizes::new(x.dims(), kernel.dims(), self.settings);
        match x.dtype() {
            DType::F64 => sizes.gradients::<f64>(x, kernel, grad),
            DType::F16 => sizes.gradients::<f16>(x, kernel, grad),
            DType::BF16 => sizes.gradients::<bf16>(x, kernel, grad),
            _ => sizes.gradients::<f32>(x, kernel, grad),
        }
    }
}

#[cfg(test)]
mod tests;
