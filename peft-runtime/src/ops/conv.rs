//! Convolutions: a frozen kernel never gets a gradient.
//!
//! On the CPU the op is our own in both directions: candle 0.11.1's transposed one-dimensional convolution, which its
//! backward pass goes through, is wrong for batches of more than one.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType, bail};

use super::attach::with_gradient;
use super::cpu::matmul::{Matrix, Write, matmul_into};
use super::cpu::window::Window;
use super::is_half_on_cpu;
use super::linear::contiguous_slice;

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
/// (`[out, in / groups, …]`). Half precision on the CPU is computed in f32 and rounded once.
pub(crate) fn conv(x: &Tensor, kernel: &Tensor, settings: ConvSettings) -> Result<Tensor> {
    check_input(x.dims(), kernel.dims(), settings)?;
    if is_half_on_cpu(x) {
        let y = conv(&x.to_dtype(DType::F32)?, &kernel.to_dtype(DType::F32)?, settings)?;
        return y.to_dtype(x.dtype());
    }
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op2(&kernel.contiguous()?, Conv { settings });
    }
    if kernel.track_op() {
        return convolve(x, kernel, settings);
    }
    let kernel = kernel.detach().contiguous()?;
    let y = convolve(&x.detach(), &kernel, settings)?;
    let (probe, kernel_shape) = (x.detach(), kernel.clone());
    with_gradient(x, y, move |grad| {
        // candle's own backward pass, on a graph that holds the input alone.
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

/// The op on the CPU: windows unfolded to columns, one matrix product for each picture and group.
struct Conv {
    settings: ConvSettings,
}

/// The sizes of one call.
struct Sizes {
    batch: usize,
    groups: usize,
    /// Input channels of a group.
    inputs: usize,
    /// Output channels of a group.
    outputs: usize,
    window: Window,
}

impl Sizes {
    fn new(input: &[usize], kernel: &[usize], settings: ConvSettings) -> Self {
        let ConvSettings { padding, stride, dilation, groups } = settings;
        // A signal is a picture one pixel high, which is neither padded nor strided over.
        let last_two = |dims: &[usize]| if dims.len() == 3 { [1, dims[2]] } else { [dims[2], dims[3]] };
        let flat = input.len() == 3;
        let both = |value: usize, neutral: usize| if flat { [neutral, value] } else { [value, value] };
        let (input_size, kernel_size) = (last_two(input), last_two(kernel));
        let (stride, padding, dilation) = (both(stride, 1), both(padding, 0), both(dilation, 1));
        let fits = |axis: usize| {
            let reach = dilation[axis] * (kernel_size[axis] - 1) + 1;
            (input_size[axis] + 2 * padding[axis] - reach) / stride[axis] + 1
        };
        let output = [fits(0), fits(1)];
        let window = Window { input: input_size, kernel: kernel_size, output, stride, padding, dilation };
        Self { batch: input[0], groups, inputs: kernel[1], outputs: kernel[0] / groups, window }
    }

    fn output_shape(&self, rank: usize) -> Vec<usize> {
        let [height, width] = self.window.output;
        let channels = self.groups * self.outputs;
        if rank == 3 { vec![self.batch, channels, width] } else { vec![self.batch, channels, height, width] }
    }

    /// Elements of a group's share of one input picture, one output picture, the kernel, and the columns.
    fn input_part(&self) -> usize {
        self.inputs * self.window.input[0] * self.window.input[1]
    }

    fn output_part(&self) -> usize {
        self.outputs * self.window.places()
    }

    fn kernel_part(&self) -> usize {
        self.outputs * self.depth()
    }

    /// The number of rows of the columns: what one output element sums over.
    fn depth(&self) -> usize {
        self.inputs * self.window.size()
    }

    fn zero_columns<T: WithDType>(&self) -> Vec<T> {
        vec![T::from_f64(0.0); self.depth() * self.window.places()]
    }

    fn forward<T: WithDType>(&self, x: &[T], kernel: &[T]) -> Result<Vec<T>> {
        let mut y = vec![T::from_f64(0.0); self.batch * self.groups * self.output_part()];
        let mut columns = self.zero_columns();
        let pictures = x.chunks(self.input_part()).zip(y.chunks_mut(self.output_part()));
        for (part, (x, y)) in pictures.enumerate() {
            self.window.unfold(x, &mut columns);
            let columns = Matrix::contiguous(&columns, self.depth(), self.window.places())?;
            matmul_into(y, Write::Replace, 1.0, self.kernel_of(kernel, part)?, columns)?;
        }
        Ok(y)
    }

    /// The kernel's share of the group that part number `part` of all pictures belongs to.
    fn kernel_of<'k, T>(&self, kernel: &'k [T], part: usize) -> Result<Matrix<'k, T>> {
        let start = part % self.groups * self.kernel_part();
        Matrix::contiguous(&kernel[start..start + self.kernel_part()], self.outputs, self.depth())
    }

    /// dx: the kernel's transpose times the gradient, folded.
    fn input_gradient<T: WithDType>(&self, grad: &[T], kernel: &[T]) -> Result<Vec<T>> {
        let mut dx = vec![T::from_f64(0.0); self.batch * self.groups * self.input_part()];
        let mut columns = self.zero_columns();
        let pictures = grad.chunks(self.output_part()).zip(dx.chunks_mut(self.input_part()));
        for (part, (grad, dx)) in pictures.enumerate() {
            let grad = Matrix::contiguous(grad, self.outputs, self.window.places())?;
            matmul_into(&mut columns, Write::Replace, 1.0, self.kernel_of(kernel, part)?.transposed(), grad)?;
            self.window.fold(&columns, dx);
        }
        Ok(dx)
    }

    /// dK: the gradient times the transposed columns, summed over the batch.
    fn kernel_gradient<T: WithDType>(&self, x: &[T], grad: &[T]) -> Result<Vec<T>> {
        let mut dk = vec![T::from_f64(0.0); self.groups * self.kernel_part()];
        let mut columns = self.zero_columns();
        let pictures = x.chunks(self.input_part()).zip(grad.chunks(self.output_part()));
        for (part, (x, grad)) in pictures.enumerate() {
            self.window.unfold(x, &mut columns);
            let columns = Matrix::contiguous(&columns, self.depth(), self.window.places())?.transposed();
            let start = part % self.groups * self.kernel_part();
            let grad = Matrix::contiguous(grad, self.outputs, self.window.places())?;
            matmul_into(&mut dk[start..start + self.kernel_part()], Write::Add, 1.0, grad, columns)?;
        }
        Ok(dk)
    }

    fn gradients<T: WithDType>(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<T>();
        let grad = values(grad)?;
        let dx = match x.track_op() {
            true => {
                Some(Tensor::from_vec(self.input_gradient(&grad, &values(kernel)?)?, x.dims(), x.device())?)
            }
            false => None,
        };
        let dk = match kernel.track_op() {
            true => {
                Some(Tensor::from_vec(self.kernel_gradient(&values(x)?, &grad)?, kernel.dims(), x.device())?)
            }
            false => None,
        };
        Ok((dx, dk))
    }
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
        let y = match (x, kernel) {
            (CpuStorage::F32(x), CpuStorage::F32(kernel)) => {
                let kernel = contiguous_slice(kernel, kernel_layout)?;
                CpuStorage::F32(sizes.forward(contiguous_slice(x, x_layout)?, kernel)?)
            }
            (CpuStorage::F64(x), CpuStorage::F64(kernel)) => {
                let kernel = contiguous_slice(kernel, kernel_layout)?;
                CpuStorage::F64(sizes.forward(contiguous_slice(x, x_layout)?, kernel)?)
            }
            _ => bail!("a convolution takes an input and a kernel of one dtype, f32 or f64"),
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
            _ => sizes.gradients::<f32>(x, kernel, grad),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Result, Tensor, Var};

    use super::{ConvSettings, conv};

    fn random(shape: &[usize]) -> Result<Tensor> {
        Tensor::randn(0f64, 1., shape, &Device::Cpu)
    }

    fn assert_close(a: &Tensor, b: &Tensor, what: &str) {
        let error = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        assert!(error < 1e-6, "{what}: off by {error}");
    }

    /// Every shape × settings: the forward pass is candle's, the backward pass is the difference quotient.
    #[test]
    fn forward_is_candles_and_backward_is_the_difference_quotient() {
        let settings = |padding, stride, dilation, groups| ConvSettings { padding, stride, dilation, groups };
        let cases = [
            (vec![3, 2, 7], vec![4, 2, 3], settings(1, 2, 1, 1)),
            (vec![2, 4, 9], vec![6, 2, 2], settings(0, 1, 3, 2)),
            (vec![2, 3, 6, 5], vec![4, 3, 3, 3], settings(1, 2, 1, 1)),
            (vec![2, 4, 5, 7], vec![4, 1, 2, 3], settings(2, 1, 2, 4)),
        ];
        for (input, kernel, settings) in cases {
            let (x, k) = (random(&input).unwrap(), random(&kernel).unwrap());
            let y = conv(&x, &k, settings).unwrap();
            let f32_of = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
            let ConvSettings { padding, stride, dilation, groups } = settings;
            let theirs = match input.len() {
                3 => f32_of(&x).conv1d(&f32_of(&k), padding, stride, dilation, groups).unwrap(),
                _ => f32_of(&x).conv2d(&f32_of(&k), padding, stride, dilation, groups).unwrap(),
            };
            let difference = (f32_of(&y) - theirs).unwrap().abs().unwrap().max_all().unwrap();
            assert!(difference.to_scalar::<f32>().unwrap() < 1e-4, "{input:?} {kernel:?}");

            let (xv, kv) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&k).unwrap());
            let probe = random(y.dims()).unwrap();
            let loss = (conv(&xv, &kv, settings).unwrap() * &probe).unwrap().sum_all().unwrap();
            let grads = loss.backward().unwrap();
            // The product is linear in each operand: the quotient is exact but for rounding.
            for (var, is_input) in [(&xv, true), (&kv, false)] {
                let direction = random(var.dims()).unwrap();
                let moved = (var.as_tensor() + &direction).unwrap();
                let y_moved = if is_input { conv(&moved, &k, settings) } else { conv(&x, &moved, settings) };
                let change = ((y_moved.unwrap() - &y).unwrap() * &probe).unwrap().sum_all().unwrap();
                let predicted = (grads.get(var).unwrap() * direction).unwrap().sum_all().unwrap();
                assert_close(&change, &predicted, if is_input { "input" } else { "kernel" });
            }
        }
    }

    #[test]
    fn a_frozen_kernel_gets_no_gradient() {
        let x = Var::from_tensor(&random(&[2, 1, 5]).unwrap()).unwrap();
        let kernel = random(&[3, 1, 2]).unwrap();
        let settings = ConvSettings { padding: 0, stride: 1, dilation: 1, groups: 1 };
        let grads = conv(&x, &kernel, settings).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&x).is_some() && grads.get(&kernel).is_none());
    }
}
