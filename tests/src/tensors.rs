//! Random tensors that are the same in every run, and exact comparisons of tensors.

use std::cell::RefCell;

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use peft_runtime::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A source of random tensors, determined by a seed.
pub struct Generator(ChaCha8Rng);

impl Generator {
    /// The source of this seed.
    pub fn from_seed(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Values between −`bound` and `bound`.
    ///
    /// # Errors
    /// If the tensor cannot be made.
    pub fn uniform(&mut self, shape: impl Into<Shape>, bound: f64, dtype: DType) -> Result<Tensor> {
        let shape = shape.into();
        // 53 bits, which is what an f64 holds.
        let mut draw = || (self.0.next_u64() >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
        let values: Vec<f64> = (0..shape.elem_count()).map(|_| draw() * bound).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
    }
}

thread_local! {
    static GENERATOR: RefCell<Generator> = RefCell::new(Generator::from_seed(0));
}

/// Values in f32 with the mean 0 and the standard deviation 1.
///
/// A test runs on a thread of its own, and every thread draws the same sequence: what passes once always passes. (With one
/// test thread all tests share a sequence, which depends only on the tests that run.)
pub fn random(shape: impl Into<Shape>) -> Tensor {
    random_with(shape, 1.0)
}

/// The same with a different standard deviation.
pub fn random_with(shape: impl Into<Shape>, deviation: f64) -> Tensor {
    // A uniform distribution in ±1 has the standard deviation 1 / √3.
    let bound = deviation * 3f64.sqrt();
    let drawn = GENERATOR.with_borrow_mut(|generator| generator.uniform(shape, bound, DType::F32));
    drawn.expect("the processor has room for a small tensor")
}

/// Gives every tensor of the model's adapter `name` random values, so that the adapter acts.
///
/// # Errors
/// If the model has no such adapter.
pub fn randomise<M: Injectable>(model: &mut M, name: &str, deviation: f64) -> peft_runtime::Result<()> {
    let mut state = model.adapter_state_dict(name)?;
    for tensor in state.values_mut() {
        *tensor = (tensor.to_dtype(DType::F32)? + random_with(tensor.shape(), deviation))?;
    }
    model.load_adapter_state_dict(&state, name)
}

/// A base model's weights, drawn when the model asks for them, whatever their names.
pub struct RandomWeights;

impl RandomWeights {
    /// A builder that draws the weights of models from here, with the standard deviation 0.3.
    pub fn var_builder(dtype: DType) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(Self), dtype, Device::Cpu)
    }
}

impl SimpleBackend for RandomWeights {
    fn get(&self, shape: Shape, _: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        random_with(shape, 0.3).to_dtype(dtype)?.to_device(device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("`{name}` has no shape of its own")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// The bits of a tensor of floats, for comparisons that allow no error.
///
/// # Errors
/// If the tensor holds no floats.
pub fn bits(tensor: &Tensor) -> Result<Vec<u64>> {
    if tensor.elem_count() == 0 {
        return Ok(Vec::new());
    }
    let values = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    Ok(values.into_iter().map(f64::to_bits).collect())
}

/// Whether two tensors have the same type, shape and bits.
pub fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    let bits = |tensor: &Tensor| bits(tensor).expect("the tensor holds floats");
    (a.dtype(), a.dims()) == (b.dtype(), b.dims()) && bits(a) == bits(b)
}

/// The largest absolute difference of two tensors.
///
/// # Errors
/// If their shapes differ.
pub fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    (a.to_dtype(DType::F64)? - b.to_dtype(DType::F64)?)?.abs()?.max_all()?.to_scalar()
}

/// The largest absolute value of a tensor.
///
/// # Errors
/// If it has no elements.
pub fn largest(tensor: &Tensor) -> Result<f64> {
    tensor.to_dtype(DType::F64)?.abs()?.max_all()?.to_scalar()
}
