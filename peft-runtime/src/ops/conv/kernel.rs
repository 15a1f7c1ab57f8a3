//! Both passes on the CPU: windows unfolded to columns, one matrix product for each image and group.

use candle_core::{Result, Tensor, WithDType};

use super::unfold::SlidingWindow;
use crate::ops::cpu::float::Float;
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::cpu::real::Real;

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

/// The sizes of one call.
pub(super) struct Sizes {
    batch: usize,
    groups: usize,
    /// Input channels of a group.
    inputs: usize,
    /// Output channels of a group.
    outputs: usize,
    window: SlidingWindow,
}

impl Sizes {
    pub(super) fn new(input: &[usize], kernel: &[usize], settings: ConvSettings) -> Self {
        let ConvSettings { padding, stride, dilation, groups } = settings;
        // A signal is an image one pixel high; that dimension is neither padded nor strided over.
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
        let window =
            SlidingWindow { input: input_size, kernel: kernel_size, output, stride, padding, dilation };
        Self { batch: input[0], groups, inputs: kernel[1], outputs: kernel[0] / groups, window }
    }

    pub(super) fn output_shape(&self, rank: usize) -> Vec<usize> {
        let [height, width] = self.window.output;
        let channels = self.groups * self.outputs;
        if rank == 3 { vec![self.batch, channels, width] } else { vec![self.batch, channels, height, width] }
    }

    /// The number of elements in a group's share of one input image, one output image, the kernel and the columns.
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

    /// y; with a bias, one value for each output channel, it is summed together with that and rounded once.
    pub(super) fn forward<T: Float>(
        &self,
        x: &[T],
        kernel: &[T],
        bias: Option<&[T::Wide]>,
    ) -> Result<Vec<T>> {
        let mut y = vec![T::from_f64(0.0); self.batch * self.groups * self.output_part()];
        let (mut columns, mut space) = (self.zero_columns(), Vec::new());
        let pictures = x.chunks(self.input_part()).zip(y.chunks_mut(self.output_part()));
        for (part, (x, y)) in pictures.enumerate() {
            self.window.unfold(x, &mut columns);
            let columns = Matrix::contiguous(&columns, self.depth(), self.window.places())?;
            let kernel = self.kernel_of(kernel, part)?;
            match bias {
                None => T::matmul(y, kernel, columns)?,
                Some(bias) => {
                    let bias = &bias[part % self.groups * self.outputs..][..self.outputs];
                    let mut done = Ok(());
                    T::write(y, &mut space, |y| {
                        let channels = y.chunks_mut(self.window.places().max(1));
                        channels.zip(bias).for_each(|(channel, bias)| channel.fill(*bias));
                        done = T::matmul_wide(y, Write::Add, kernel, columns);
                    });
                    done?;
                }
            }
        }
        Ok(y)
    }

    /// The part of the kernel for the group that part number `part` of all images belongs to.
    fn kernel_of<'k, T>(&self, kernel: &'k [T], part: usize) -> Result<Matrix<'k, T>> {
        let start = part % self.groups * self.kernel_part();
        Matrix::contiguous(&kernel[start..start + self.kernel_part()], self.outputs, self.depth())
    }

    /// dx: the kernel's transpose times the gradient, folded.
    fn input_gradient<T: Float>(&self, grad: &[T], kernel: &[T]) -> Result<Vec<T>> {
        let mut dx = vec![T::from_f64(0.0); self.batch * self.groups * self.input_part()];
        let mut columns = self.zero_columns::<T::Wide>();
        let mut space = Vec::new();
        let pictures = grad.chunks(self.output_part()).zip(dx.chunks_mut(self.input_part()));
        for (part, (grad, dx)) in pictures.enumerate() {
            let grad = Matrix::contiguous(grad, self.outputs, self.window.places())?;
            T::matmul_wide(&mut columns, Write::Replace, self.kernel_of(kernel, part)?.transposed(), grad)?;
            T::write(dx, &mut space, |dx| {
                dx.fill(T::Wide::ZERO);
                self.window.fold(&columns, dx);
            });
        }
        Ok(dx)
    }

    /// dK: the gradient times the transposed columns, summed over the batch.
    fn kernel_gradient<T: Float>(&self, x: &[T], grad: &[T]) -> Result<Vec<T>> {
        let mut dk = vec![T::Wide::ZERO; self.groups * self.kernel_part()];
        let mut columns = self.zero_columns();
        let pictures = x.chunks(self.input_part()).zip(grad.chunks(self.output_part()));
        for (part, (x, grad)) in pictures.enumerate() {
            self.window.unfold(x, &mut columns);
            let columns = Matrix::contiguous(&columns, self.depth(), self.window.places())?.transposed();
            let start = part % self.groups * self.kernel_part();
            let grad = Matrix::contiguous(grad, self.outputs, self.window.places())?;
            T::matmul_wide(&mut dk[start..start + self.kernel_part()], Write::Add, grad, columns)?;
        }
        Ok(T::round(dk))
    }

    pub(super) fn gradients<T: Float>(
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
