//! The norm of a layer's update, and the difference between two updates.

use candle_core::{DType, Result as CandleResult, Tensor};

use crate::adapter::LowRank;
use crate::manage::is_finite;
use crate::ops::decompose::qr;
use crate::ops::matmul::product;

/// The update of a layer's weight as a matrix `[out, in · kernel]`.
#[derive(Clone, Copy)]
pub(super) enum Update<'u> {
    /// Two factors.
    LowRank(&'u LowRank),
    /// The matrix itself.
    Dense(&'u Tensor),
}

impl Update<'_> {
    fn shape(&self) -> CandleResult<(usize, usize)> {
        match self {
            Self::LowRank(terms) => Ok((terms.b.dim(0)?, terms.a.dim(1)?)),
            Self::Dense(matrix) => matrix.dims2(),
        }
    }

    fn matrix(&self) -> CandleResult<Tensor> {
        match self {
            Self::LowRank(terms) => product(&wide(&terms.b)?, &wide(&terms.a)?, terms.scaling),
            Self::Dense(matrix) => wide(matrix),
        }
    }

    /// The Frobenius norm.
    pub(super) fn norm(&self) -> CandleResult<f64> {
        match self {
            Self::LowRank(terms) => low_rank_norm(&[(terms, 1.0)]),
            Self::Dense(matrix) => inner_product(&wide(matrix)?, &wide(matrix)?).map(f64::sqrt),
        }
    }

    /// The Frobenius norm of the difference between two updates, and the cosine of the angle between them; `None` if
    /// their shapes differ.
    pub(super) fn difference(&self, other: &Self) -> CandleResult<Option<(f64, f64)>> {
        if self.shape()? != other.shape()? {
            return Ok(None);
        }
        if let (Self::LowRank(a), Self::LowRank(b)) = (self, other) {
            return low_rank_difference(a, b).map(Some);
        }
        let (a, b) = (self.matrix()?, other.matrix()?);
        let apart = (&a - &b)?;
        let distance = inner_product(&apart, &apart)?.sqrt();
        let lengths = (inner_product(&a, &a)? * inner_product(&b, &b)?).sqrt();
        let cosine = if lengths == 0.0 {
            cosine_without_length(distance)
        } else {
            (inner_product(&a, &b)? / lengths).clamp(-1.0, 1.0)
        };
        Ok(Some((distance, cosine)))
    }
}

fn wide(tensor: &Tensor) -> CandleResult<Tensor> {
    tensor.detach().to_dtype(DType::F64)
}

fn inner_product(a: &Tensor, b: &Tensor) -> CandleResult<f64> {
    (a * b)?.sum_all()?.to_scalar()
}

/// The cosine where an update is zero: two zero updates count as equal.
fn cosine_without_length(distance: f64) -> f64 {
    if distance == 0.0 { 1.0 } else { 0.0 }
}

/// The Frobenius norm of `Σ factor · s · B · A`, computed from triangular factors: equal updates cancel out.
fn low_rank_norm(terms: &[(&LowRank, f64)]) -> CandleResult<f64> {
    let a = terms.iter().map(|(term, _)| wide(&term.a)).collect::<CandleResult<Vec<_>>>()?;
    let b = terms.iter().map(|(term, factor)| wide(&term.b)? * (term.scaling * factor));
    let b = b.collect::<CandleResult<Vec<_>>>()?;
    let (a, b) = (Tensor::cat(&a, 0)?, Tensor::cat(&b, 1)?);
    if a.elem_count() == 0 || b.elem_count() == 0 {
        return Ok(0.0);
    }
    if !is_finite(&a)? || !is_finite(&b)? {
        return Ok(f64::NAN);
    }
    let (_, left) = qr(&b)?;
    let (_, right) = qr(&a.t()?.contiguous()?)?;
    product(&left, &right.t()?, 1.0)?.sqr()?.sum_all()?.sqrt()?.to_scalar()
}

fn low_rank_difference(a: &LowRank, b: &LowRank) -> CandleResult<(f64, f64)> {
    let distance = low_rank_norm(&[(a, 1.0), (b, -1.0)])?;
    let lengths = low_rank_norm(&[(a, 1.0)])? * low_rank_norm(&[(b, 1.0)])?;
    if lengths == 0.0 {
        return Ok((distance, cosine_without_length(distance)));
    }
    // ⟨B₁A₁, B₂A₂⟩ = Σ (B₁ᵀB₂) ⊙ (A₁A₂ᵀ)
    let outputs = product(&wide(&a.b)?.t()?, &wide(&b.b)?, a.scaling * b.scaling)?;
    let inputs = product(&wide(&a.a)?, &wide(&b.a)?.t()?, 1.0)?;
    let inner: f64 = (outputs * inputs)?.sum_all()?.to_scalar()?;
    Ok((distance, (inner / lengths).clamp(-1.0, 1.0)))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::Update;
    use crate::adapter::LowRank;
    use crate::ops::random::{normal, stream};

    /// Normal values that are the same in every run; `label` names the sequence.
    fn random(label: &str, shape: [usize; 2]) -> Tensor {
        normal(&mut stream(0, label, 0), 1.0, &shape, DType::F64, &Device::Cpu).unwrap()
    }

    fn dense(terms: &LowRank) -> Tensor {
        (terms.b.matmul(&terms.a).unwrap() * terms.scaling).unwrap()
    }

    fn length(matrix: &Tensor) -> f64 {
        matrix.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
    }

    #[test]
    fn norms_are_those_of_the_dense_matrices() {
        let first = LowRank { a: random("a", [2, 7]), b: random("b", [5, 2]), scaling: 1.5 };
        let second = LowRank { a: random("c", [3, 7]), b: random("d", [5, 3]), scaling: -0.5 };
        let dense = [dense(&first), dense(&second)];
        let apart = (&dense[0] - &dense[1]).unwrap();
        let inner: f64 = (&dense[0] * &dense[1]).unwrap().sum_all().unwrap().to_scalar().unwrap();
        let lengths = length(&dense[0]) * length(&dense[1]);
        for first in [Update::LowRank(&first), Update::Dense(&dense[0])] {
            assert!((first.norm().unwrap() - length(&dense[0])).abs() < 1e-9);
            let (distance, cosine) = first.difference(&first).unwrap().unwrap();
            assert!(distance < 1e-12 && (cosine - 1.0).abs() < 1e-9, "{distance} {cosine}");
            for second in [Update::LowRank(&second), Update::Dense(&dense[1])] {
                let (distance, cosine) = first.difference(&second).unwrap().unwrap();
                assert!((distance - length(&apart)).abs() < 1e-9);
                assert!((cosine - inner / lengths).abs() < 1e-9);
            }
        }
        let other = Tensor::ones((5, 6), DType::F64, &Device::Cpu).unwrap();
        assert_eq!(Update::Dense(&dense[0]).difference(&Update::Dense(&other)).unwrap(), None);
    }
}
