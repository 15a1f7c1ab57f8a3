//! Rotary position embedding in the convention of transformers' Llama: the first half of a head rotates with the second.

mod kernel;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};
use half::{bf16, f16};

use self::kernel::rotate;
use crate::ops::constant::mul_constant;
use crate::ops::cpu::float::{Float, wide_dtype};
use crate::ops::cpu::real::Real;
use crate::ops::cpu::threads::for_each;
use crate::ops::elements::{Elements, contiguous_slice};
use crate::ops::graph::carried::ApplyCarried;

/// Rotates every head of `x` by the angles of its position. <https://arxiv.org/abs/2104.09864>
///
/// `x` has shape `[batch, length, heads, head_dim]`; `cos` and `sin`, `[length, head_dim / 2]`, are constants, even if
/// they are part of a graph. Element i of a head's first half rotates with element i of its second half, as in
/// transformers' `rotate_half`. The output has the shape and dtype of `x`; in half precision it is computed in f32 and
/// rounded once.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use peft_runtime::nn::rotary;
///
/// let x = Tensor::new(&[[[[1f32, 0.0]]]], &Device::Cpu)?;
/// let quarter = (Tensor::new(&[[0f32]], &Device::Cpu)?, Tensor::new(&[[1f32]], &Device::Cpu)?);
/// assert_eq!(rotary(&x, &quarter.0, &quarter.1)?.flatten_all()?.to_vec1::<f32>()?, [0.0, 1.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If the shapes do not fit, or `x` does not hold floats.
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let op = Rotary::new(x, cos, sin)?;
    if x.device().is_cpu() { x.contiguous()?.carry_op1(op) } else { op.composed(x) }
}

/// A rotation by constant angles, in the dtype in which it is computed.
pub(super) struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// The rotation of tensors with the length and dtype of `x`.
    pub(super) fn new(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Self> {
        Self::check(x, cos, sin)?;
        let dtype = if x.device().is_cpu() { wide_dtype(x.dtype()) } else { x.dtype() };
        let angles = |tensor: &Tensor| tensor.detach().to_dtype(dtype)?.contiguous();
        Ok(Self { cos: angles(cos)?, sin: angles(sin)? })
    }

    /// An error if there is not one angle for each position and pair of `x`.
    pub(super) fn check(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<()> {
        let (_, length, _, size) = x.dims4()?;
        let expected = [length, size / 2];
        if size == 0 || !size.is_multiple_of(2) || cos.dims() != expected || sin.dims() != expected {
            bail!(
                "cosines of shape {:?} and sines of shape {:?} do not fit an input of shape {:?}, expected \
                 [length, head_dim / 2]",
                cos.dims(),
                sin.dims(),
                x.dims()
            )
        }
        Ok(())
    }

    /// The rotation from candle's own differentiable ops.
    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, length, heads, size) = x.dims4()?;
        let half = size / 2;
        let (first, second) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
        let angles = |tensor: &Tensor| {
            tensor.reshape((1, length, 1, half))?.broadcast_as((batch, length, heads, half))
        };
        let (cos, sin) = (angles(&self.cos)?, angles(&self.sin)?);
        let y_first = (mul_constant(&first, &cos)? - mul_constant(&second, &sin)?)?;
        let y_second = (mul_constant(&second, &cos)? + mul_constant(&first, &sin)?)?;
        Tensor::cat(&[y_first, y_second], 3)
    }

    /// The rotation (`direction` 1) or the rotation back (−1) of elements in order, `[batch, length, heads, head_dim]`.
    pub(super) fn rotated<T: Float>(&self, x: &[T], dims: &[usize], direction: f64) -> Result<Vec<T>> {
        let mut y = vec![T::from_f64(0.0); x.len()];
        let row = row_size(dims)?;
        self.for_each_row(&mut y, dims, |index, y: &mut [T], cos, sin| {
            let [mut wide_x, mut wide_y] = [const { Vec::new() }; 2];
            let x = T::read(&x[index * row..][..y.len()], &mut wide_x);
            T::write(y, &mut wide_y, |y| {
                y.copy_from_slice(x);
                rotate(y, cos, sin, T::Wide::of(direction));
            });
        })?;
        Ok(y)
    }

    /// [`rotated`](Self::rotated) for a contiguous tensor, outside of any graph.
    pub(super) fn rotated_tensor<T: Float>(&self, x: &Tensor, direction: f64) -> Result<Tensor> {
        let elements = Elements::of(x);
        let y = self.rotated(elements.as_slice::<T>()?, x.dims(), direction)?;
        Tensor::from_vec(y, x.dims(), &Device::Cpu)
    }

    /// The rotation back, in place.
    pub(super) fn rotate_back<T: Real + Float<Wide = T>>(
        &self,
        values: &mut [T],
        dims: &[usize],
    ) -> Result<()> {
        self.for_each_row(values, dims, |_, values, cos, sin| rotate(values, cos, sin, T::of(-1.0)))
    }

    /// Calls `f` for the heads of each token, with the token's index, the elements, and the cosines and sines of its
    /// position.
    fn for_each_row<T: Float>(
        &self,
        values: &mut [T],
        dims: &[usize],
        f: impl Fn(usize, &mut [T], &[T::Wide], &[T::Wide]) + Sync,
    ) -> Result<()> {
        let (row, (length, half)) = (row_size(dims)?, self.cos.dims2()?);
        let (cos, sin) = (Elements::of(&self.cos), Elements::of(&self.sin));
        let (cos, sin) = (cos.as_slice::<T::Wide>()?, sin.as_slice::<T::Wide>()?);
        for_each(values.chunks_mut(row).enumerate(), |(index, values)| {
            let start = index % length * half;
            f(index, values, &cos[start..][..half], &sin[start..][..half]);
        });
        Ok(())
    }
}

/// The number of elements of a token, with `dims` `[batch, length, heads, head_dim]`.
fn row_size(dims: &[usize]) -> Result<usize> {
    let &[_, _, heads, size] = dims else { bail!("an input of shape {dims:?} has no heads") };
    Ok((heads * size).max(1))
}

impl CustomOp1 for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = match storage {
            CpuStorage::F32(x) => {
                CpuStorage::F32(self.rotated(contiguous_slice(x, layout)?, layout.dims(), 1.0)?)
            }
            CpuStorage::F64(x) => {
                CpuStorage::F64(self.rotated(contiguous_slice(x, layout)?, layout.dims(), 1.0)?)
            }
            CpuStorage::F16(x) => {
                CpuStorage::F16(self.rotated(contiguous_slice(x, layout)?, layout.dims(), 1.0)?)
            }
            CpuStorage::BF16(x) => {
                CpuStorage::BF16(self.rotated(contiguous_slice(x, layout)?, layout.dims(), 1.0)?)
            }
            storage => bail!("a rotary embedding takes floats, not {:?}", storage.dtype()),
        };
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        Ok(Some(match x.dtype() {
            DType::F64 => self.rotated_tensor::<f64>(&grad, -1.0)?,
            DType::F16 => self.rotated_tensor::<f16>(&grad, -1.0)?,
            DType::BF16 => self.rotated_tensor::<bf16>(&grad, -1.0)?,
            _ => self.rotated_tensor::<f32>(&grad, -1.0)?,
        }))
    }
}

#[cfg(test)]
mod tests;
