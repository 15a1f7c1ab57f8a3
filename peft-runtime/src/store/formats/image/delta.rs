//! The update of one module's weight, in the forms that files have.

use candle_core::{DType, Result, Tensor};

use super::place::Piece;

/// What is added to a weight, as a matrix `[out, in · kernel]`.
#[derive(Clone, Debug)]
pub(super) enum Delta {
    LowRank(LowRank),
    Hadamard(Hadamard),
    Kronecker(Kronecker),
    /// The matrix itself.
    Dense(Tensor),
}

/// `scale · B·A`: A `[rank, in · kernel]` and B `[out, rank]`.
#[derive(Clone, Debug)]
pub(super) struct LowRank {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    pub(super) alpha: f64,
    /// Whether alpha is divided by the root of the rank, as rank stabilisation has it.
    pub(super) stabilised: bool,
    /// What B adds to the output, `[out]`, before the scale.
    pub(super) bias: Option<Tensor>,
}

/// `alpha / rank · (A₁·B₁) ∘ (A₂·B₂)`, with LyCORIS's shapes.
#[derive(Clone, Debug)]
pub(super) struct Hadamard {
    /// A₁, B₁, A₂, B₂.
    pub(super) factors: [Tensor; 4],
    pub(super) cores: Option<[Tensor; 2]>,
    pub(super) alpha: f64,
}

/// `alpha / rank · W₁ ⊗ W₂`, with LyCORIS's shapes.
#[derive(Clone, Debug)]
pub(super) struct Kronecker {
    pub(super) first: Half,
    pub(super) second: Half,
    pub(super) alpha: Option<f64>,
}

/// A half of a Kronecker product.
#[derive(Clone, Debug)]
pub(super) enum Half {
    Whole(Tensor),
    Product(Tensor, Tensor),
    Core { core: Tensor, left: Tensor, right: Tensor },
}

fn wide(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(DType::F64)
}

/// A number that a file has of a size.
#[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
pub(super) fn as_number(size: usize) -> f64 {
    size as f64
}

/// `Σ core[i, j, k…] · right[j, q]`, of shape `[i, q, k]`: the elements of the window are one dimension.
pub(super) fn contract(core: &Tensor, right: &Tensor) -> Result<Tensor> {
    let (outer, inner) = (core.dim(0)?, core.dim(1)?);
    let core = core.reshape((outer, inner, ()))?;
    let elements = core.dim(2)?;
    // [i · k, j] · [j, q]
    let rows = core.transpose(1, 2)?.contiguous()?.reshape((outer * elements, inner))?;
    rows.matmul(right)?.reshape((outer, elements, ()))?.transpose(1, 2)?.contiguous()
}

/// `Σ core[i, j, k…] · left[i, p] · right[j, q]` as a matrix `[p, q · k]`.
fn core_product(core: &Tensor, left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let inner = contract(core, right)?;
    left.t()?.contiguous()?.matmul(&inner.flatten_from(1)?)
}

impl LowRank {
    pub(super) fn rank(&self) -> usize {
        self.a.dims().first().copied().unwrap_or_default()
    }

    pub(super) fn scale(&self) -> f64 {
        let rank = as_number(self.rank());
        self.alpha / if self.stabilised { rank.sqrt() } else { rank }
    }

    /// Two factors of which one is the identity: their product has the matrix's own bits.
    pub(super) fn of_matrix(matrix: &Tensor) -> Result<Self> {
        let (outputs, inputs) = matrix.dims2()?;
        let rank = outputs.min(inputs);
        let identity = Tensor::eye(rank, DType::F32, matrix.device())?.to_dtype(matrix.dtype())?;
        let (a, b) = if outputs <= inputs { (matrix.clone(), identity) } else { (identity, matrix.clone()) };
        Ok(Self { a, b, alpha: as_number(rank), stabilised: false, bias: None })
    }

    /// The update, in f64.
    fn matrix(&self) -> Result<Tensor> {
        wide(&self.b)?.matmul(&wide(&self.a)?)? * self.scale()
    }
}

impl Hadamard {
    pub(super) fn rank(&self) -> usize {
        // B₁ has it first in both forms.
        self.factors[1].dims().first().copied().unwrap_or_default()
    }

    fn sides(&self) -> Option<(usize, usize)> {
        let [a, b, ..] = &self.factors;
        match &self.cores {
            None => Some((*a.dims().first()?, *b.dims().get(1)?)),
            Some([core, _]) => {
                let elements: usize = core.dims().get(2..)?.iter().product();
                Some((*a.dims().get(1)?, b.dims().get(1)?.checked_mul(elements)?))
            }
        }
    }

    fn matrix(&self) -> Result<Tensor> {
        let [a1, b1, a2, b2] = &self.factors;
        let (a1, b1, a2, b2) = (wide(a1)?, wide(b1)?, wide(a2)?, wide(b2)?);
        let (first, second) = match &self.cores {
            Some([t1, t2]) => (core_product(&wide(t1)?, &a1, &b1)?, core_product(&wide(t2)?, &a2, &b2)?),
            None => (a1.matmul(&b1)?, a2.matmul(&b2)?),
        };
        (first * second)? * (self.alpha / as_number(self.rank()))
    }

    fn take(&self, piece: &Piece) -> Result<Self> {
        let axis = usize::from(self.cores.is_some());
        let [a1, b1, a2, b2] = &self.factors;
        let factors = [piece.take(a1, axis)?, b1.clone(), piece.take(a2, axis)?, b2.clone()];
        Ok(Self { factors, cores: self.cores.clone(), alpha: self.alpha })
    }
}

impl Half {
    /// The rank of the factors, if it is not whole.
    pub(super) fn rank(&self) -> Option<usize> {
        match self {
            Self::Whole(_) => None,
            Self::Product(_, right) | Self::Core { right, .. } => right.dims().first().copied(),
        }
    }

    /// Outputs, inputs, and elements of a window behind each input, which factors do not tell from inputs.
    pub(super) fn sides(&self) -> Option<(usize, usize)> {
        match self {
            Self::Whole(whole) => {
                let [outputs, inputs @ ..] = whole.dims() else { return None };
                Some((*outputs, inputs.iter().product()))
            }
            Self::Product(left, right) => Some((*left.dims().first()?, *right.dims().get(1)?)),
            Self::Core { core, left, right } => {
                let elements: usize = core.dims().get(2..)?.iter().product();
                Some((*left.dims().get(1)?, right.dims().get(1)?.checked_mul(elements)?))
            }
        }
    }

    /// The matrix `[out, in · kernel]`, in f64.
    fn matrix(&self) -> Result<Tensor> {
        match self {
            Self::Whole(whole) => wide(whole)?.flatten_from(1),
            Self::Product(left, right) => wide(left)?.matmul(&wide(right)?),
            Self::Core { core, left, right } => core_product(&wide(core)?, &wide(left)?, &wide(right)?),
        }
    }
}

impl Kronecker {
    /// The rank that divides alpha; none if both halves are whole, and then alpha is not used.
    pub(super) fn rank(&self) -> Option<usize> {
        self.second.rank().or_else(|| self.first.rank())
    }

    fn sides(&self) -> Option<(usize, usize)> {
        let ((a, c), (b, d)) = (self.first.sides()?, self.second.sides()?);
        Some((a.checked_mul(b)?, c.checked_mul(d)?))
    }

    fn matrix(&self) -> Result<Tensor> {
        let (first, second) = (self.first.matrix()?, self.second.matrix()?);
        let ((a, c), (b, d)) = (first.dims2()?, second.dims2()?);
        let product = first.reshape((a, 1, c, 1))?.broadcast_mul(&second.reshape((1, b, 1, d))?)?;
        let scale = match (self.alpha, self.rank()) {
            (Some(alpha), Some(rank)) => alpha / as_number(rank),
            _ => 1.0,
        };
        product.reshape((a * b, c * d))? * scale
    }
}

impl Delta {
    /// Outputs, and inputs times the elements of the window.
    pub(super) fn sides(&self) -> Option<(usize, usize)> {
        match self {
            Self::LowRank(terms) => Some((*terms.b.dims().first()?, *terms.a.dims().get(1)?)),
            Self::Hadamard(terms) => terms.sides(),
            Self::Kronecker(terms) => terms.sides(),
            Self::Dense(matrix) => matrix.dims2().ok(),
        }
    }

    /// The update as a matrix, in f64.
    pub(super) fn matrix(&self) -> Result<Tensor> {
        match self {
            Self::LowRank(terms) => terms.matrix(),
            Self::Hadamard(terms) => terms.matrix(),
            Self::Kronecker(terms) => terms.matrix(),
            Self::Dense(matrix) => wide(matrix),
        }
    }

    /// The part of the update that belongs to one module.
    pub(super) fn take(&self, piece: &Piece) -> Result<Self> {
        if piece.taken.is_empty() {
            return Ok(self.clone());
        }
        Ok(match self {
            Self::LowRank(terms) => {
                let bias = terms.bias.as_ref().map(|bias| piece.take(bias, 0)).transpose()?;
                Self::LowRank(LowRank { b: piece.take(&terms.b, 0)?, bias, ..terms.clone() })
            }
            Self::Hadamard(terms) => Self::Hadamard(terms.take(piece)?),
            Self::Kronecker(_) | Self::Dense(_) => {
                Self::Dense(piece.take(&narrow(&self.matrix()?, self)?, 0)?)
            }
        })
    }

    /// The update as two factors, which every form has.
    pub(super) fn low_rank(&self) -> Result<LowRank> {
        match self {
            Self::LowRank(terms) => Ok(terms.clone()),
            other => LowRank::of_matrix(&narrow(&other.matrix()?, other)?),
        }
    }
}

/// A matrix in f64 in the dtype that a file would have it in.
fn narrow(matrix: &Tensor, of: &Delta) -> Result<Tensor> {
    match of {
        Delta::Dense(own) => matrix.to_dtype(own.dtype()),
        _ => matrix.to_dtype(DType::F32),
    }
}
