//! Matrix factorisations, by faer.

use candle_core::{DType, Device, Result, Tensor, bail};
use faer::{Mat, MatRef};
use rand_chacha::ChaCha8Rng;

use super::matmul::product;
use super::random;

/// `matrix = u · diag(s) · vt`, singular values in falling order.
pub(crate) struct Svd {
    /// `[m, k]` with k = min(m, n).
    pub(crate) u: Tensor,
    /// `[k]`.
    pub(crate) s: Tensor,
    /// `[k, n]`.
    pub(crate) vt: Tensor,
}

/// The thin singular value decomposition of an `[m, n]` matrix, in f32 (f64 for f64), on the CPU.
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

/// The decomposition cut to the first `rank` singular values, by a randomised search with power iterations:
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
pub(crate) fn qr(matrix: &Tensor) -> Result<(Tensor, Tensor)> {
    let (dtype, device) = (matrix.dtype(), matrix.device().clone());
    let wide = wide(dtype);
    let qr = to_faer(matrix)?.qr();
    Ok((from_faer(qr.compute_thin_Q().as_ref(), wide, &device)?, from_faer(qr.thin_R(), wide, &device)?))
}

/// The dtype of factors: f32, or f64 for f64.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Decompositions are computed in f64: they are rare, and small singular values suffer first.
pub(super) fn to_faer(matrix: &Tensor) -> Result<Mat<f64>> {
    let (rows, columns) = matrix.dims2()?;
    let values = matrix.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    Ok(MatRef::from_row_major_slice(&values, rows, columns).to_owned())
}

pub(super) fn from_faer(matrix: MatRef<'_, f64>, dtype: DType, device: &Device) -> Result<Tensor> {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let mut values = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            values.push(matrix[(row, column)]);
        }
    }
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::{qr, randomised_svd, svd};
    use crate::ops::random::stream;

    fn distance(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    fn diagonal(s: &Tensor) -> Tensor {
        s.unsqueeze(0).unwrap()
    }

    #[test]
    fn factors_multiply_to_the_matrix() {
        for shape in [(5, 3), (3, 5), (4, 4), (6, 1)] {
            let matrix = Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap();
            let factors = svd(&matrix).unwrap();
            let us = factors.u.broadcast_mul(&diagonal(&factors.s)).unwrap();
            assert!(distance(&us.matmul(&factors.vt).unwrap(), &matrix) < 1e-5);
            let s = factors.s.to_vec1::<f32>().unwrap();
            assert!(s.windows(2).all(|pair| pair[0] >= pair[1]));
            let (q, r) = qr(&matrix).unwrap();
            assert!(distance(&q.matmul(&r).unwrap(), &matrix) < 1e-5);
        }
    }

    #[test]
    fn the_randomised_search_finds_the_leading_part() {
        let left = Tensor::randn(0f32, 1., (30, 3), &Device::Cpu).unwrap();
        let right = Tensor::randn(0f32, 1., (3, 20), &Device::Cpu).unwrap();
        let matrix = left.matmul(&right).unwrap();
        let factors = randomised_svd(&matrix, 3, 4, &mut stream(0, "svd", 0)).unwrap();
        assert_eq!(
            (factors.u.dims(), factors.s.dims(), factors.vt.dims()),
            (&[30, 3][..], &[3][..], &[3, 20][..])
        );
        let us = factors.u.broadcast_mul(&diagonal(&factors.s)).unwrap();
        assert!(distance(&us.matmul(&factors.vt).unwrap(), &matrix) < 1e-3);
        let _ = DType::F32;
    }
}
