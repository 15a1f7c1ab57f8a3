//! Batches of sequences without their padding.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use crate::ops::elements::contiguous_slice;
use crate::ops::graph::carried::ApplyCarried;

/// Which positions of a padded batch hold tokens.
///
/// Layers that act on each token separately (linear layers, norms, gates) spend as much time on padding as on tokens;
/// on packed tokens, `[tokens, …]`, they do not. Attention needs the padded batch, `[batch, length, …]`, with its mask.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use peft_runtime::nn::Packing;
///
/// let packing = Packing::new(&Tensor::new(&[[1f32, 1., 0.], [1., 0., 0.]], &Device::Cpu)?)?;
/// let x = Tensor::new(&[[[1f32], [2.], [9.]], [[3.], [9.], [9.]]], &Device::Cpu)?;
/// let packed = packing.pack(&x)?;
/// assert_eq!(packed.to_vec2::<f32>()?, [[1.], [2.], [3.]]);
/// let padded = packing.unpack(&packed)?;
/// assert_eq!(padded.to_vec3::<f32>()?, [[[1.], [2.], [0.]], [[3.], [0.], [0.]]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Packing {
    batch: usize,
    length: usize,
    /// The places of the tokens in `batch · length`, ascending.
    places: Arc<[u32]>,
}

impl Packing {
    /// The tokens of an attention mask `[batch, length]` in any dtype: 0 for padding.
    ///
    /// # Errors
    /// If the mask does not have two dimensions, or has no token.
    pub fn new(mask: &Tensor) -> Result<Self> {
        let (batch, length) = mask.dims2()?;
        let values = mask.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let places: Arc<[u32]> =
            (0..).zip(values).filter(|(_, value)| *value != 0.0).map(|(place, _)| place).collect();
        if places.is_empty() {
            bail!("the attention mask of shape {:?} has no token", mask.dims())
        }
        Ok(Self { batch, length, places })
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.places.len()
    }

    /// The tokens of `x`, `[batch, length, …]`, one after the other: `[tokens, …]`.
    ///
    /// # Errors
    /// If `x` has a different batch size or length.
    pub fn pack(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, Move::Pack)
    }

    /// The tokens at their places, `[batch, length, …]`, and zeros elsewhere.
    ///
    /// # Errors
    /// If `x` has a different number of tokens.
    pub fn unpack(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, Move::Unpack)
    }

    fn apply(&self, x: &Tensor, direction: Move) -> Result<Tensor> {
        let padded = [self.batch, self.length];
        let rest = match direction {
            Move::Pack => x.dims().strip_prefix(&padded),
            Move::Unpack => x.dims().strip_prefix(&[self.tokens()]),
        };
        let Some(rest) = rest else {
            bail!("{:?} is not a batch of {} tokens in {padded:?} places", x.dims(), self.tokens())
        };
        let dims = match direction {
            Move::Pack => [&[self.tokens()], rest].concat(),
            Move::Unpack => [&padded, rest].concat(),
        };
        if x.device().is_cpu() {
            return x.contiguous()?.carry_op1(PackingOp { packing: self.clone(), direction, dims });
        }
        let places = Tensor::new(&*self.places, x.device())?;
        let width = rest.iter().product::<usize>();
        let moved = match direction {
            Move::Pack => x.reshape((self.batch * self.length, width))?.index_select(&places, 0)?,
            Move::Unpack => Tensor::zeros((self.batch * self.length, width), x.dtype(), x.device())?
                .index_add(&places, &x.reshape((self.tokens(), width))?, 0)?,
        };
        moved.reshape(dims)
    }
}

/// The direction; the two are transposes of each other.
#[derive(Clone, Copy, Debug)]
enum Move {
    Pack,
    Unpack,
}

/// The op on the CPU.
struct PackingOp {
    packing: Packing,
    direction: Move,
    dims: Vec<usize>,
}

impl PackingOp {
    fn run<T: Copy + Default>(&self, x: &[T]) -> Vec<T> {
        let places = self.packing.places.iter().map(|place| *place as usize);
        let width = x.len() / self.rows();
        match self.direction {
            Move::Pack => places.flat_map(|place| &x[place * width..][..width]).copied().collect(),
            Move::Unpack => {
                let mut y = vec![T::default(); self.dims.iter().product()];
                for (row, place) in places.enumerate() {
                    y[place * width..][..width].copy_from_slice(&x[row * width..][..width]);
                }
                y
            }
        }
    }

    /// The number of rows that are read.
    fn rows(&self) -> usize {
        match self.direction {
            Move::Pack => self.packing.batch * self.packing.length,
            Move::Unpack => self.packing.tokens(),
        }
    }
}

impl CustomOp1 for PackingOp {
    fn name(&self) -> &'static str {
        "packing"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = match storage {
            CpuStorage::U32(x) => CpuStorage::U32(self.run(contiguous_slice(x, layout)?)),
            CpuStorage::I64(x) => CpuStorage::I64(self.run(contiguous_slice(x, layout)?)),
            CpuStorage::F16(x) => CpuStorage::F16(self.run(contiguous_slice(x, layout)?)),
            CpuStorage::BF16(x) => CpuStorage::BF16(self.run(contiguous_slice(x, layout)?)),
            CpuStorage::F32(x) => CpuStorage::F32(self.run(contiguous_slice(x, layout)?)),
            CpuStorage::F64(x) => CpuStorage::F64(self.run(contiguous_slice(x, layout)?)),
            storage => bail!("sequences of {:?} cannot be packed", storage.dtype()),
        };
        Ok((y, Shape::from(self.dims.as_slice())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = match self.direction {
            Move::Pack => self.packing.unpack(grad)?,
            Move::Unpack => self.packing.pack(grad)?,
        };
        Ok(Some(back))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor, Var};

    use super::Packing;
    use crate::ops::testing::random_variable;

    fn mask() -> Tensor {
        Tensor::new(&[[1u8, 0, 1], [0, 1, 0]], &Device::Cpu).unwrap()
    }

    #[test]
    fn gradients_go_back_to_the_places_they_came_from() {
        let packing = Packing::new(&mask()).unwrap();
        let x = random_variable(DType::F32, "x", &[2, 3, 2]);
        let factors = Tensor::new(&[[1f32, 2.], [3., 4.], [5., 6.]], &Device::Cpu).unwrap();
        let loss = packing.pack(&x).unwrap().mul(&factors).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let expected = [[[1f32, 2.], [0., 0.], [3., 4.]], [[0., 0.], [5., 6.], [0., 0.]]];
        assert_eq!(grads.get(&x).unwrap().to_vec3::<f32>().unwrap(), expected);

        let y = Var::ones((3, 2), DType::F32, &Device::Cpu).unwrap();
        let factors = Tensor::new(&expected, &Device::Cpu).unwrap();
        let loss = packing.unpack(&y).unwrap().mul(&factors).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        assert_eq!(grads.get(&y).unwrap().to_vec2::<f32>().unwrap(), [[1., 2.], [3., 4.], [5., 6.]]);
    }

    #[test]
    fn other_shapes_and_empty_masks_are_errors() {
        let packing = Packing::new(&mask()).unwrap();
        assert_eq!(packing.tokens(), 3);
        let x = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
        assert!(packing.pack(&x(&[3, 2, 4])).is_err() && packing.unpack(&x(&[2, 4])).is_err());
        assert_eq!(packing.pack(&x(&[2, 3])).unwrap().dims(), [3]);
        assert!(Packing::new(&x(&[2, 3])).is_err());
    }
}
