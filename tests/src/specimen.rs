//! One small model for every layer kind, for the laws that hold on all of them.

use std::cell::RefCell;

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Embedding, Linear, Module};
use peft_runtime::nn::{PaddedEmbedding, TransposedLinear};
use peft_runtime::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A model of one layer, called `layer`, before a linear one, called `head`.
#[derive(Clone, Injectable)]
pub struct Specimen {
    layer: AnyLayer,
    head: Adapted<Linear>,
}

/// A layer of any kind.
#[derive(Clone, Injectable)]
enum AnyLayer {
    Linear(Adapted<Linear>),
    Transposed(Adapted<TransposedLinear>),
    Embedding(Adapted<Embedding>),
    Padded(Adapted<PaddedEmbedding>),
    Conv1d(Adapted<Conv1d>),
    Conv2d(Adapted<Conv2d>),
}

/// The layer kinds there are, each with settings of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Linear` with a bias.
    Linear,
    /// `Linear` without one.
    LinearNoBias,
    /// A weight stored as `[in, out]`.
    Transposed,
    /// A table of rows.
    Embedding,
    /// A table with a row for padding.
    PaddedEmbedding,
    /// A convolution with stride and padding.
    Conv1d,
    /// A convolution with padding.
    Conv2d,
    /// A convolution in two groups.
    GroupedConv2d,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Linear,
        Self::LinearNoBias,
        Self::Transposed,
        Self::Embedding,
        Self::PaddedEmbedding,
        Self::Conv1d,
        Self::Conv2d,
        Self::GroupedConv2d,
    ];

    /// Whether an adapter on the layer can be merged into its weight.
    pub fn merges(self) -> bool {
        self != Self::GroupedConv2d
    }

    /// Whether the layer's input are indices.
    pub fn is_embedding(self) -> bool {
        matches!(self, Self::Embedding | Self::PaddedEmbedding)
    }
}

/// Sizes of the specimens: odd ones, so that exchanged dimensions show.
const IN: usize = 6;
const OUT: usize = 8;

fn weight(shape: &[usize], dtype: DType) -> Result<Tensor> {
    random(shape, 0.5)?.to_dtype(dtype)
}

impl Specimen {
    /// A model whose `layer` is of this kind, with random weights.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn new(kind: Kind, dtype: DType) -> Result<Self> {
        let bias = weight(&[OUT], dtype)?;
        let conv1d = Conv1dConfig { stride: 2, padding: 1, ..Conv1dConfig::default() };
        let conv2d = |groups| Conv2dConfig { padding: 1, groups, ..Conv2dConfig::default() };
        let layer = match kind {
            Kind::Linear => AnyLayer::Linear(Linear::new(weight(&[OUT, IN], dtype)?, Some(bias)).into()),
            Kind::LinearNoBias => AnyLayer::Linear(Linear::new(weight(&[OUT, IN], dtype)?, None).into()),
            Kind::Transposed => {
                AnyLayer::Transposed(TransposedLinear::new(weight(&[IN, OUT], dtype)?, Some(bias)).into())
            }
            Kind::Embedding => AnyLayer::Embedding(Embedding::new(weight(&[11, OUT], dtype)?, OUT).into()),
            Kind::PaddedEmbedding => {
                let table = Embedding::new(weight(&[11, OUT], dtype)?, OUT);
                AnyLayer::Padded(PaddedEmbedding::new(table, Some(3)).into())
            }
            Kind::Conv1d => {
                AnyLayer::Conv1d(Conv1d::new(weight(&[OUT, IN, 3], dtype)?, Some(bias), conv1d).into())
            }
            Kind::Conv2d => {
                AnyLayer::Conv2d(Conv2d::new(weight(&[OUT, IN, 3, 2], dtype)?, Some(bias), conv2d(1)).into())
            }
            Kind::GroupedConv2d => {
                AnyLayer::Conv2d(Conv2d::new(weight(&[OUT, IN / 2, 3, 3], dtype)?, None, conv2d(2)).into())
            }
        };
        let head = Linear::new(weight(&[4, OUT], dtype)?, Some(weight(&[4], dtype)?)).into();
        Ok(Self { layer, head })
    }

    /// An input for the model: three rows.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn input(kind: Kind, dtype: DType) -> Result<Tensor> {
        match kind {
            Kind::Linear | Kind::LinearNoBias | Kind::Transposed => weight(&[3, 5, IN], dtype),
            Kind::Embedding | Kind::PaddedEmbedding => {
                Tensor::new(&[[0u32, 3, 10, 7], [3, 3, 1, 2], [9, 8, 5, 3]], &Device::Cpu)
            }
            Kind::Conv1d => weight(&[3, IN, 9], dtype),
            Kind::Conv2d | Kind::GroupedConv2d => weight(&[3, IN, 5, 4], dtype),
        }
    }

    /// The model's output, `[rows, …, 4]`.
    ///
    /// # Errors
    /// If the input does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let features_last = |y: Tensor| y.flatten_from(2)?.transpose(1, 2)?.contiguous();
        let hidden = match &self.layer {
            AnyLayer::Linear(layer) => layer.forward(x)?,
            AnyLayer::Transposed(layer) => layer.forward(x)?,
            AnyLayer::Embedding(layer) => layer.forward(x)?,
            AnyLayer::Padded(layer) => layer.forward(x)?,
            AnyLayer::Conv1d(layer) => features_last(layer.forward(x)?)?,
            AnyLayer::Conv2d(layer) => features_last(layer.forward(x)?)?,
        };
        self.head.forward(&hidden)
    }
}

/// Gives every tensor of the model's adapter `name` random values, so that the adapter acts.
///
/// # Errors
/// If the model has no such adapter.
pub fn randomise<M: Injectable>(model: &mut M, name: &str, deviation: f64) -> peft_runtime::Result<()> {
    let mut state = model.adapter_state_dict(name)?;
    for tensor in state.values_mut() {
        let noise = random(tensor.shape(), deviation)?;
        *tensor = (tensor.to_dtype(DType::F32)? + noise)?;
    }
    model.load_adapter_state_dict(&state, name)
}

thread_local! {
    static RANDOM: RefCell<ChaCha8Rng> = RefCell::new(ChaCha8Rng::seed_from_u64(0));
}

/// Values with the mean 0 and this standard deviation, in f32.
///
/// A test runs on a thread of its own, and every thread draws the same sequence: what passes once passes always.
///
/// # Errors
/// If the tensor cannot be made.
pub fn random(shape: impl Into<Shape>, deviation: f64) -> Result<Tensor> {
    let shape = shape.into();
    // A uniform distribution in ±1 has the deviation 1 / √3.
    let bound = deviation * 3f64.sqrt();
    let values: Vec<f32> = RANDOM.with_borrow_mut(|random| {
        let mut draw = || f64::from(random.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0;
        (0..shape.elem_count()).map(|_| (draw() * bound) as f32).collect()
    });
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// The bits of a tensor, for comparisons that allow no error.
///
/// # Errors
/// If the tensor holds no floats.
pub fn bits(tensor: &Tensor) -> Result<Vec<u64>> {
    let values = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    Ok(values.into_iter().map(f64::to_bits).collect())
}

/// The largest absolute difference of two tensors.
///
/// # Errors
/// If their shapes differ.
pub fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    (a.to_dtype(DType::F64)? - b.to_dtype(DType::F64)?)?.abs()?.max_all()?.to_scalar()
}
