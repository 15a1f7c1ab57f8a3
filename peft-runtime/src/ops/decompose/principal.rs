//! Principal components of rows that come in batches.

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::ops::decompose::symmetric_eigen;
use crate::ops::matmul::add_product;

/// What mean and covariance are computed from: the number of rows, their sum and `Σ xᵀ·x`, in f64.
#[derive(Debug, Default)]
pub(crate) struct Moments {
    count: usize,
    /// `[1, features]` and `[features, features]`.
    sums: Option<(Tensor, Tensor)>,
}

/// Directions in the order of descending variance.
#[derive(Debug)]
pub(crate) struct Components {
    /// `[components, features]`, of length 1.
    vectors: Tensor,
    /// How far the rows extend along each direction: the singular values of the centred rows.
    lengths: Vec<f64>,
    /// The share of the total variance in each direction.
    pub(crate) explained: Vec<f64>,
}

impl Moments {
    /// Adds the rows of `x`, `[…, features]`.
    pub(crate) fn add(&mut self, x: &Tensor) -> Result<()> {
        let features = x.dims().last().copied().unwrap_or_default();
        let x = x.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.reshape(((), features))?;
        let (sum, squares) = match self.sums.take() {
            Some(sums) => sums,
            None => {
                let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F64, &Device::Cpu);
                (zeros((1, features))?, zeros((features, features))?)
            }
        };
        if squares.dim(0)? != features {
            bail!("rows of {features} features cannot follow rows of {}", squares.dim(0)?)
        }
        self.count += x.dim(0)?;
        let sum = (sum + x.sum_keepdim(0)?)?;
        self.sums = Some((sum, add_product(squares, &x.t()?, &x, 1.0)?));
        Ok(())
    }

    /// The first `most` directions in which the rows vary.
    pub(crate) fn principal_components(&self, most: usize) -> Result<Components> {
        let Some((sum, squares)) = &self.sums else { bail!("there are no rows to find directions in") };
        let features = squares.dim(0)?;
        let needed = most.min(features);
        if self.count < needed {
            bail!("{} rows are too few to find {needed} directions in; pass more batches", self.count)
        }
        #[expect(clippy::cast_precision_loss, reason = "the number of rows is far below 2^53")]
        let count = self.count as f64;
        let scatter = (squares - (sum.t()?.matmul(sum)? / count)?)?;
        let (values, all) = symmetric_eigen(&scatter)?;
        // Rounding can make the smallest ones negative.
        let values: Vec<f64> = values.into_iter().map(|value| value.max(0.0)).collect();
        let total: f64 = values.iter().sum();
        let vectors = all.narrow(0, 0, needed)?;
        let explained = |value: &f64| if total > 0.0 { value / total } else { 0.0 };
        Ok(Components {
            vectors: with_positive_peaks(&vectors)?,
            lengths: values.iter().take(needed).map(|value| value.sqrt()).collect(),
            explained: values.iter().take(needed).map(explained).collect(),
        })
    }
}

impl Components {
    /// The first `count` directions as rows; divided by the square roots of their lengths if they are to be whitened.
    pub(crate) fn directions(&self, count: usize, whiten: bool) -> Result<Tensor> {
        let vectors = self.vectors.narrow(0, 0, count)?;
        if !whiten {
            return vectors.contiguous();
        }
        let roots: Vec<f64> = self.lengths.iter().take(count).map(|length| length.sqrt()).collect();
        vectors.broadcast_div(&Tensor::from_vec(roots, (count, 1), &Device::Cpu)?)
    }
}

/// A direction and its opposite are the same component: the one whose largest element is positive is taken.
fn with_positive_peaks(vectors: &Tensor) -> Result<Tensor> {
    let mut rows = vectors.to_vec2::<f64>()?;
    for row in &mut rows {
        let peak = row.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or_default();
        if peak < 0.0 {
            row.iter_mut().for_each(|value| *value = -*value);
        }
    }
    Tensor::new(rows, &Device::Cpu)
}

#[cfg(all(test, feature = "decompositions"))]
mod tests {
    use candle_core::DType;

    use super::Moments;
    use crate::ops::testing::{random, random_as};

    #[test]
    fn the_components_are_those_of_the_centred_rows_by_svd() {
        let x = (random_as(DType::F32, "x", &[40, 6]) + 3.0).unwrap();
        let mut moments = Moments::default();
        moments.add(&x.narrow(0, 0, 15).unwrap().reshape((3, 5, 6)).unwrap()).unwrap();
        moments.add(&x.narrow(0, 15, 25).unwrap()).unwrap();
        let components = moments.principal_components(4).unwrap();
        let wide = x.to_dtype(DType::F64).unwrap();
        let centred = wide.broadcast_sub(&wide.mean_keepdim(0).unwrap()).unwrap();
        let svd = crate::ops::decompose::svd(&centred).unwrap();
        let s = svd.s.to_vec1::<f64>().unwrap();
        let total: f64 = s.iter().map(|s| s * s).sum();
        let directions = components.directions(4, false).unwrap();
        for (i, (explained, s)) in components.explained.iter().zip(&s).enumerate() {
            assert!((explained - s * s / total).abs() < 1e-9);
            let (ours, theirs) = (directions.get(i).unwrap(), svd.vt.get(i).unwrap());
            let cosine = (ours * theirs).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
            assert!((cosine.abs() - 1.0).abs() < 1e-9, "{i}: {cosine}");
        }
    }

    #[test]
    fn too_few_rows_are_an_error_that_says_how_many_there_are() {
        let mut moments = Moments::default();
        moments.add(&random("x", &[3, 6])).unwrap();
        let error = moments.principal_components(4).unwrap_err().to_string();
        assert!(error.contains("3 rows are too few"), "{error}");
    }
}
