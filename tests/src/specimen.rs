//! One small model for every layer kind, for the laws that hold on all of them.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Embedding, Linear, Module};
use peft_runtime::nn::{PaddedEmbedding, TransposedLinear};
use peft_runtime::prelude::*;

use crate::tensors::random_with;

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

/// The layer kinds, each with its own settings.
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

    /// Those whose weight is one matrix that multiplies the input.
    pub const LINEAR: [Self; 3] = [Self::Linear, Self::LinearNoBias, Self::Transposed];

    /// Those whose weight has its outputs as the first dimension and is not a table.
    pub const OUTPUTS_FIRST: [Self; 5] =
        [Self::Linear, Self::LinearNoBias, Self::Conv1d, Self::Conv2d, Self::GroupedConv2d];

    /// The convolutions.
    pub const CONV: [Self; 3] = [Self::Conv1d, Self::Conv2d, Self::GroupedConv2d];

    /// Those with a bias.
    pub const BIASED: [Self; 4] = [Self::Linear, Self::Transposed, Self::Conv1d, Self::Conv2d];

    /// Whether the layer's inputs are indices.
    pub fn is_embedding(self) -> bool {
        matches!(self, Self::Embedding | Self::PaddedEmbedding)
    }
}

/// The sizes of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// The number of features or channels of its input; has to be even for a convolution in groups.
    pub inputs: usize,
    /// The number of features or channels of its output; has to be even for a convolution in groups.
    pub outputs: usize,
}

/// Two sizes that differ, so that swapped dimensions are noticed.
const SIZES: Sizes = Sizes { inputs: 6, outputs: 8 };

/// The rows of an embedding.
const ROWS: usize = 11;

fn weight(shape: &[usize], dtype: DType) -> Result<Tensor> {
    random_with(shape, 0.5).to_dtype(dtype)
}

impl Specimen {
    /// A model whose `layer` is of this kind, with random weights.
    ///
    /// # Errors
    /// If a tensor cannot be created.
    pub fn new(kind: Kind, dtype: DType) -> Result<Self> {
        Self::with_sizes(kind, dtype, SIZES)
    }

    /// The same with other sizes.
    ///
    /// # Errors
    /// If a tensor cannot be created.
    pub fn with_sizes(kind: Kind, dtype: DType, sizes: Sizes) -> Result<Self> {
        let Sizes { inputs, outputs } = sizes;
        let bias = weight(&[outputs], dtype)?;
        let conv1d = Conv1dConfig { stride: 2, padding: 1, ..Conv1dConfig::default() };
        let conv2d = |groups| Conv2dConfig { padding: 1, groups, ..Conv2dConfig::default() };
        let layer = match kind {
            Kind::Linear => {
                AnyLayer::Linear(Linear::new(weight(&[outputs, inputs], dtype)?, Some(bias)).into())
            }
            Kind::LinearNoBias => {
                AnyLayer::Linear(Linear::new(weight(&[outputs, inputs], dtype)?, None).into())
            }
            Kind::Transposed => AnyLayer::Transposed(
                TransposedLinear::new(weight(&[inputs, outputs], dtype)?, Some(bias)).into(),
            ),
            Kind::Embedding => {
                AnyLayer::Embedding(Embedding::new(weight(&[ROWS, outputs], dtype)?, outputs).into())
            }
            Kind::PaddedEmbedding => {
                let table = Embedding::new(weight(&[ROWS, outputs], dtype)?, outputs);
                AnyLayer::Padded(PaddedEmbedding::new(table, Some(3)).into())
            }
            Kind::Conv1d => AnyLayer::Conv1d(
                Conv1d::new(weight(&[outputs, inputs, 3], dtype)?, Some(bias), conv1d).into(),
            ),
            Kind::Conv2d => AnyLayer::Conv2d(
                Conv2d::new(weight(&[outputs, inputs, 3, 2], dtype)?, Some(bias), conv2d(1)).into(),
            ),
            Kind::GroupedConv2d => AnyLayer::Conv2d(
                Conv2d::new(weight(&[outputs, inputs / 2, 3, 3], dtype)?, None, conv2d(2)).into(),
            ),
        };
        let head = Linear::new(weight(&[4, outputs], dtype)?, Some(weight(&[4], dtype)?)).into();
        Ok(Self { layer, head })
    }

    /// An input for the model: three rows.
    ///
    /// # Errors
    /// If a tensor cannot be created.
    pub fn input(kind: Kind, dtype: DType) -> Result<Tensor> {
        Self::input_of(kind, dtype, SIZES)
    }

    /// The same for a model with other sizes.
    ///
    /// # Errors
    /// If a tensor cannot be created.
    pub fn input_of(kind: Kind, dtype: DType, Sizes { inputs, .. }: Sizes) -> Result<Tensor> {
        match kind {
            Kind::Linear | Kind::LinearNoBias | Kind::Transposed => weight(&[3, 5, inputs], dtype),
            Kind::Embedding | Kind::PaddedEmbedding => {
                Tensor::new(&[[0u32, 3, 10, 7], [3, 3, 1, 2], [9, 8, 5, 3]], &Device::Cpu)
            }
            Kind::Conv1d => weight(&[3, inputs, 9], dtype),
            Kind::Conv2d | Kind::GroupedConv2d => weight(&[3, inputs, 5, 4], dtype),
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
