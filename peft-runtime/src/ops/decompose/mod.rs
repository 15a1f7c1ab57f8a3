//! Matrix factorisations with faer. In a build without the feature `decompositions`, they return an error that says so.

pub(crate) mod principal;

#[cfg(feature = "decompositions")]
use candle_core::Device;
use candle_core::{DType, Result, Tensor, bail};
#[cfg(feature = "decompositions")]
use faer::{Mat, MatRef, Side};
use rand_chacha::ChaCha8Rng;

use crate::ops::matmul::product;
use crate::ops::random;

/// Whether this build can factorise matrices.
pub(crate) const IS_AVAILABLE: bool = cfg!(feature = "decompositions");

/// `matrix = u · diag(s) · vt`, singular values in descending order.
pub(crate) struct Svd {
    /// `[m, k]` with k = min(m, n).
    pub(crate) u: Tensor,
    /// `[k]`.
    pub(crate) s: Tensor,
    /// `[k, n]`.
    pub(crate) vt: Tensor,
}

#[cfg(not(feature = "decompositions"))]
pub(crate) fn svd(_: &Tensor) -> Result<Svd> {
    bail!("a singular value decomposition needs the feature `decompositions` of peft-runtime")
}

#[cfg(not(feature = "decompositions"))]
pub(crate) fn qr(_: &Tensor) -> Result<(Tensor, Tensor)> {
    bail!("a QR decomposition needs the feature `decompositions` of peft-runtime")
}

#[cfg(not(feature = "decompositions"))]
pub(super) fn symmetric_eigen(_: &Tensor) -> Result<(Vec<f64>, Tensor)> {
    bail!("an eigendecomposition needs the feature `decompositions` of peft-runtime")
}

/// The thin singular value decomposition of an `[m, n]` matrix, in f32 (f64 for f64), on the CPU.
#[cfg(feature = "decompositions")]
pub(crate) fn svd(matrix: &Tensor) -> Result<Svd> {
    let (dtype, device) = (matrix.dtype(), matrix.device().clone());
    let matrix = to_faer(matrix)?;
    let Ok(svd) = matrix.thin_svd() else { bail!("the singular value decomposition did not converge") };
    let s: Vec<f64> = svd.S().column_vector().iter().copied().collect();
    let s = Tensor::from_vec(s, svd.S().column_vector().nrows(), &Device::Cpu)?;
    let wide = wide(dtype);
    Ok(Svd {
        u: from_faer(svd.U(), wide, &device)?,
        s: s.to_dtype(wide)?.to_device(&device)?,
        vt: from_faer(svd.V().transpose(), wide, &device)?,
    })
}

/// The decomposition truncated to the first `rank` singular values, by a randomised search with power iterations:
/// <https://arxiv.org/abs/0909.4061>.
pub(crate) fn randomised_svd(
    matrix: &Tensor,
    rank: usize,
    iterations: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Svd> {
    let matrix = matrix.to_dtype(wide(matrix.dtype()))?;
    let (rows, columns) = matrix.dims2()?;
    let rank = rank.min(rows).min(columns);
    let probe = random::normal(rng, 1.0, &[columns, rank], matrix.dtype(), matrix.device())?;
    let mut basis = qr(&product(&matrix, &probe, 1.0)?)?.0;
    for _ in 0..iterations {
        let back = qr(&product(&matrix.t()?, &basis, 1.0)?)?.0;
        basis = qr(&product(&matrix, &back, 1.0)?)?.0;
    }
    let small = svd(&product(&basis.t()?, &matrix, 1.0)?)?;
    Ok(Svd { u: product(&basis, &small.u, 1.0)?, ..small })
}

/// `matrix = q · r` with orthonormal columns in `q` (`[m, k]`) and an upper triangular `r` (`[k, n]`).
#[cfg(feature = "decompositions")]
pub(crate) fn qr(matrix: &Tensor) -> Result<(Tensor, Tensor)> {
    let (dtype, device) = (matrix.dtype(), matrix.device().clone());
    let wide = wide(dtype);
    let qr = to_faer(matrix)?.qr();
    Ok((from_faer(qr.compute_thin_Q().as_ref(), wide, &device)?, from_faer(qr.thin_R(), wide, &device)?))
}

/// The eigenvalues of a symmetric `[n, n]` matrix in descending order, and the eigenvectors as the rows of `[n, n]`; in
/// f64, on the CPU.
#[cfg(feature = "decompositions")]
pub(super) fn symmetric_eigen(matrix: &Tensor) -> Result<(Vec<f64>, Tensor)> {
    let Ok(eigen) = to_faer(matrix)?.self_adjoint_eigen(Side::Lower) else {
        bail!("the eigenvalues of a symmetric matrix did not converge")
    };
    // faer returns them in ascending order.
    let values = eigen.S().column_vector().iter().rev().copied().collect();
    Ok((values, from_faer(eigen.U().transpose().reverse_rows(), DType::F64, &Device::Cpu)?))
}

/// The dtype of factors: f32, or f64 for f64.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Decompositions are computed in f64: they are rare, and the small singular values are the first to lose precision.
#[cfg(feature = "decompositions")]
fn to_faer(matrix: &Tensor) -> Result<Mat<f64>> {
    let (rows, columns) = matrix.dims2()?;
    let values = matrix.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    Ok(MatRef::from_row_major_slice(&values, rows, columns).to_owned())
}

#[cfg(feature = "decompositions")]
fn from_faer(matrix: MatRef<'_, f64>, dtype: DType, device: &Device) -> Result<Tensor> {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let mut values = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            values.push(matrix[(row, column)]);
        }
    }
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

#[cfg(all(test, feature = "decompositions"))]
mod tests {
    use candle_core::{DType, Tensor};

    use super::{Svd, qr, randomised_svd, svd};
    use crate::ops::random::stream;
    use crate::ops::testing::{assert_close, random_as};

    /// u · diag(s) · vt.
    fn multiplied(factors: &Svd) -> Tensor {
        let us = factors.u.broadcast_mul(&factors.s.unsqueeze(0).unwrap()).unwrap();
        us.matmul(&factors.vt).unwrap()
    }

    #[test]
    fn factors_multiply_to_the_matrix() {
        for shape in [[5, 3], [3, 5], [4, 4], [6, 1]] {
            let matrix = random_as(DType::F32, "matrix", &shape);
            let factors = svd(&matrix).unwrap();
            assert_close(&multiplied(&factors), &matrix, 2e-6, "svd");
            let s = factors.s.to_vec1::<f32>().unwrap();
            assert!(s.windows(2).all(|pair| pair[0] >= pair[1]));
            let (q, r) = qr(&matrix).unwrap();
            assert_close(&q.matmul(&r).unwrap(), &matrix, 2e-6, "qr");
        }
    }

    #[test]
    fn the_randomised_search_finds_the_leading_part() {
        let left = random_as(DType::F32, "left", &[30, 3]);
        let right = random_as(DType::F32, "right", &[3, 20]);
        let matrix = left.matmul(&right).unwrap();
        let factors = randomised_svd(&matrix, 3, 4, &mut stream(0, "svd", 0)).unwrap();
        assert_eq!(
            (factors.u.dims(), factors.s.dims(), factors.vt.dims()),
            (&[30, 3][..], &[3][..], &[3, 20][..])
        );
        assert_close(&multiplied(&factors), &matrix, 1e-4, "randomised svd");
    }
}
