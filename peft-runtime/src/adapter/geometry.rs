//! What an adapter knows about the layer it sits on: the shapes, and how the layer moves data.

use candle_core::{DType, Result, Tensor};

use crate::ops::constant::{add_constant, mul_constant};
use crate::ops::conv::{ConvSettings, conv};
use crate::ops::is_half_on_cpu;
use crate::ops::linear::low_rank::{LowRank, low_rank};
use crate::schema::Family;

/// The shape of a layer as adapters see it.
///
/// Every adapter method is written only against this, so that a new layer kind works with all methods as soon as it
/// says which geometry it has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Geometry {
    /// `y = x·Wᵀ + b` with a weight of shape `[out, in]`, or `[in, out]` where it is stored transposed.
    Linear {
        /// The size of the last dimension of the input.
        in_features: usize,
        /// The size of the last dimension of the output.
        out_features: usize,
        /// Whether the weight is stored as `[in, out]`, as GPT-2's `Conv1D` does.
        transposed: bool,
    },
    /// Rows of a table of shape `[vocabulary, features]`.
    Embedding {
        /// The number of rows.
        vocabulary: usize,
        /// The size of a row.
        features: usize,
        /// The row that stands for padding, which gets no gradient.
        padding: Option<u32>,
    },
    /// A convolution with a weight of shape `[out, in / groups, …kernel]`.
    Conv {
        /// The number of input channels.
        in_channels: usize,
        /// The number of output channels.
        out_channels: usize,
        /// The size of the window in each dimension.
        kernel: Vec<usize>,
        /// How the window moves.
        settings: ConvSettings,
    },
    /// A bare weight with one matrix for each expert, `[experts, out, in]`, or `[experts, in, out]` where it is stored
    /// transposed.
    Experts {
        /// The number of matrices.
        experts: usize,
        /// The size of each one's input.
        in_features: usize,
        /// The size of each one's output.
        out_features: usize,
        /// Whether the matrices are stored as `[in, out]`.
        transposed: bool,
    },
    /// A layer that no method adapts, though a copy of it can be trained.
    Opaque,
}

impl Geometry {
    /// The family of layers it belongs to.
    pub fn family(&self) -> Family {
        match self {
            Self::Linear { .. } => Family::Linear,
            Self::Embedding { .. } => Family::Embedding,
            Self::Conv { .. } => Family::Convolution,
            Self::Experts { .. } => Family::Parameter,
            Self::Opaque => Family::Other,
        }
    }

    /// The size of the output along its feature dimension.
    pub fn out_features(&self) -> usize {
        match self {
            Self::Linear { out_features, .. } => *out_features,
            Self::Embedding { features, .. } => *features,
            Self::Conv { out_channels, .. } => *out_channels,
            Self::Experts { out_features, .. } => *out_features,
            Self::Opaque => 0,
        }
    }

    /// The size of the input along its feature dimension; for an embedding, the number of its rows.
    pub fn in_features(&self) -> usize {
        match self {
            Self::Linear { in_features, .. } => *in_features,
            Self::Embedding { vocabulary, .. } => *vocabulary,
            Self::Conv { in_channels, .. } => *in_channels,
            Self::Experts { in_features, .. } => *in_features,
            Self::Opaque => 0,
        }
    }

    /// The number of inputs that one output of the down projection sees.
    pub(crate) fn fan_in(&self) -> usize {
        match self {
            Self::Conv { in_channels, kernel, .. } => in_channels * kernel.iter().product::<usize>(),
            other => other.in_features(),
        }
    }

    /// The shape of the stored weight.
    pub(crate) fn weight_shape(&self) -> Vec<usize> {
        match self {
            Self::Linear { in_features, out_features, transposed: false } => {
                vec![*out_features, *in_features]
            }
            Self::Linear { in_features, out_features, transposed: true } => vec![*in_features, *out_features],
            Self::Embedding { vocabulary, features, .. } => vec![*vocabulary, *features],
            Self::Conv { in_channels, out_channels, kernel, settings } => {
                [&[*out_channels, in_channels / settings.groups.max(1)], kernel.as_slice()].concat()
            }
            Self::Experts { experts, in_features, out_features, transposed: false } => {
                vec![*experts, *out_features, *in_features]
            }
            Self::Experts { experts, in_features, out_features, transposed: true } => {
                vec![*experts, *in_features, *out_features]
            }
            Self::Opaque => Vec::new(),
        }
    }

    /// The shape of the factor A that maps the input to `rank` features.
    pub(crate) fn down_shape(&self, rank: usize) -> Vec<usize> {
        match self {
            Self::Conv { in_channels, kernel, .. } => [&[rank, *in_channels], kernel.as_slice()].concat(),
            Self::Experts { experts, in_features, .. } => vec![rank * experts, *in_features],
            other => vec![rank, other.in_features()],
        }
    }

    /// The shape of the factor B that maps `rank` features to the output.
    pub(crate) fn up_shape(&self, rank: usize) -> Vec<usize> {
        match self {
            Self::Conv { out_channels, kernel, settings, .. } => {
                let mut shape = vec![*out_channels, rank / settings.groups.max(1)];
                shape.resize(2 + kernel.len(), 1);
                shape
            }
            Self::Experts { experts, out_features, .. } => vec![*out_features, rank * experts],
            other => vec![other.out_features(), rank],
        }
    }

    /// `scaling · B(A(x))`, moving data the way the layer does.
    pub(crate) fn low_rank(&self, x: &Tensor, terms: &LowRank) -> Result<Tensor> {
        match self {
            Self::Embedding { features, padding, .. } => {
                let dims = [x.dims(), &[*features]].concat();
                let ids = x.flatten_all()?;
                let rows = terms.a.index_select(&ids, 1)?.t()?.contiguous()?;
                let hidden = without_padding_gradient(rows, &ids, *padding)?;
                let product = matmul(&hidden, &terms.b.t()?)?;
                (product * terms.scaling)?.reshape(dims)
            }
            Self::Conv { settings, .. } => {
                // PEFT makes A without the layer's dilation, so that its forward pass fails; merging it is this.
                let down = ConvSettings { groups: 1, ..*settings };
                let up = ConvSettings { padding: 0, stride: 1, dilation: 1, groups: settings.groups };
                let hidden = conv(&x.to_dtype(terms.a.dtype())?, &terms.a, down)?;
                conv(&hidden, &terms.b, up)? * terms.scaling
            }
            Self::Linear { .. } | Self::Experts { .. } | Self::Opaque => low_rank(x, terms),
        }
    }

    /// `scaling · B·A` in the shape of the stored weight, in the dtype of the factors. Not for grouped convolutions.
    pub(crate) fn low_rank_delta(&self, terms: &LowRank) -> Result<Tensor> {
        if let Self::Experts { .. } = self {
            let constant = LowRank { a: terms.a.detach(), b: terms.b.detach(), ..*terms };
            return self.tracked_delta(&constant);
        }
        let rank = terms.a.dim(0)?;
        let a = terms.a.detach().reshape((rank, ()))?;
        let b = terms.b.detach().reshape((self.out_features(), rank))?;
        self.stored_from_matrix(&crate::ops::matmul::product(&b, &a, terms.scaling)?)
    }

    /// The same with gradients for the factors, for bare weights. For experts, A is `[experts · rank, in]`, expert by
    /// expert, and B `[out, rank · experts]`, rank by rank, as in PEFT.
    pub(crate) fn tracked_delta(&self, terms: &LowRank) -> Result<Tensor> {
        let Self::Experts { experts, in_features, out_features, transposed } = *self else {
            return terms.b.matmul(&terms.a)? * terms.scaling;
        };
        let rank = terms.a.dim(0)? / experts.max(1);
        let a = terms.a.reshape((experts, rank, in_features))?;
        let b = terms.b.reshape((out_features, rank, experts))?.permute((2, 0, 1))?.contiguous()?;
        let delta = (b.matmul(&a)? * terms.scaling)?;
        if transposed { delta.transpose(1, 2)?.contiguous() } else { Ok(delta) }
    }

    /// A stored weight as a matrix `[out, in · kernel]`.
    pub(crate) fn to_matrix(&self, weight: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linear { transposed: true, .. } | Self::Embedding { .. } => weight.t(),
            Self::Conv { .. } => weight.flatten_from(1),
            Self::Linear { .. } | Self::Experts { .. } | Self::Opaque => Ok(weight.clone()),
        }
    }

    /// A matrix `[out, in · kernel]` in the shape of the stored weight.
    pub(crate) fn stored_from_matrix(&self, matrix: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linear { transposed: true, .. } | Self::Embedding { .. } => matrix.t(),
            Self::Conv { .. } => matrix.reshape(self.weight_shape()),
            Self::Linear { .. } | Self::Experts { .. } | Self::Opaque => Ok(matrix.clone()),
        }
    }

    /// A matrix `[out, in / groups · kernel]` with every input feature scaled by a vector `[in]`.
    pub(crate) fn scale_matrix_inputs(&self, matrix: &Tensor, vector: &Tensor) -> Result<Tensor> {
        let Self::Conv { in_channels, out_channels, kernel, settings } = self else {
            return matrix.broadcast_mul(&vector.unsqueeze(0)?);
        };
        let (groups, elements) = (settings.groups.max(1), kernel.iter().product::<usize>());
        let shape = (groups, out_channels / groups, in_channels / groups, elements);
        let vector = vector.reshape((groups, 1, in_channels / groups, 1))?;
        matrix.reshape(shape)?.broadcast_mul(&vector)?.reshape(matrix.shape())
    }

    /// The dimension of an input or output that holds its features.
    pub(crate) fn feature_axis(&self) -> usize {
        match self {
            Self::Conv { .. } => 1,
            // The last dimension, whatever its index.
            _ => usize::MAX,
        }
    }

    /// A vector with one value for each output feature, shaped so that it broadcasts over the layer's output.
    pub(crate) fn over_output(&self, vector: &Tensor) -> Result<Tensor> {
        match self {
            Self::Conv { kernel, .. } => {
                let mut shape = vec![1, vector.elem_count()];
                shape.resize(2 + kernel.len(), 1);
                vector.reshape(shape)
            }
            _ => vector.flatten_all(),
        }
    }
}

/// `rows`, one for each id; those of the padding id pass on no gradient.
pub(crate) fn without_padding_gradient(rows: Tensor, ids: &Tensor, padding: Option<u32>) -> Result<Tensor> {
    let Some(padding) = padding.filter(|_| rows.track_op()) else { return Ok(rows) };
    let keeps = ids.to_dtype(DType::U32)?.ne(padding)?.to_dtype(rows.dtype())?.unsqueeze(1)?;
    let keeps = keeps.broadcast_as(rows.shape())?.contiguous()?;
    let constant = (rows.detach() * (1.0 - &keeps)?)?;
    add_constant(&mul_constant(&rows, &keeps)?, &constant)
}

/// The product, computed in f32 where candle has no half-precision product.
fn matmul(lhs: &Tensor, rhs: &Tensor) -> Result<Tensor> {
    if is_half_on_cpu(lhs) {
        return lhs.to_dtype(DType::F32)?.matmul(&rhs.to_dtype(DType::F32)?)?.to_dtype(lhs.dtype());
    }
    lhs.matmul(rhs)
}
