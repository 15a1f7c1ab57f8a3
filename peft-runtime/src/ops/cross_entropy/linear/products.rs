//! The two products with the output layer, of hidden states in any float.

use candle_core::{DType, Result};

use crate::ops::cpu::element::Element;
use crate::ops::cpu::float::Float;
use crate::ops::cpu::matmul::matmul_into;
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::cpu::operand::Operand;
use crate::ops::cpu::sums::{Term, sum_into};
use crate::ops::cpu::threads::for_each;
use crate::ops::elements::Elements;

/// How many columns of the slopes are rounded at a time.
const CLASSES: usize = 8192;

/// A float that hidden states have; the weight may have another one, if both are at most f32.
pub(super) trait OutputLayer: Float {
    /// `logits = hidden·Wᵀ`.
    fn logits(logits: &mut [Self::Wide], hidden: Matrix<'_, Self>, weight: &Elements<'_>) -> Result<()>;

    /// `gradient = scale · slopes·W`, rounded once; the slopes are rounded too if hidden states are of half precision.
    fn gradient(
        gradient: &mut [Self],
        scale: f64,
        slopes: Matrix<'_, Self::Wide>,
        weight: &Elements<'_>,
    ) -> Result<()>;
}

impl OutputLayer for f64 {
    fn logits(logits: &mut [f64], hidden: Matrix<'_, f64>, weight: &Elements<'_>) -> Result<()> {
        let weight = Matrix::from_layout(weight.data()?, weight.layout())?;
        matmul_into(logits, Write::Replace, 1.0, hidden, weight.transposed())
    }

    fn gradient(
        gradient: &mut [f64],
        scale: f64,
        slopes: Matrix<'_, f64>,
        weight: &Elements<'_>,
    ) -> Result<()> {
        let weight = Matrix::from_layout(weight.data()?, weight.layout())?;
        matmul_into(gradient, Write::Replace, scale, slopes, weight)
    }
}

impl<T: Element + Float<Wide = f32>> OutputLayer for T
where
    for<'a> Operand<'a>: From<Matrix<'a, T>>,
{
    fn logits(logits: &mut [f32], hidden: Matrix<'_, T>, weight: &Elements<'_>) -> Result<()> {
        let weight = weight.operand()?.transposed();
        let shape = (hidden.rows(), weight.columns());
        let term = Term { scale: 1.0, lhs: hidden.into(), rhs: weight };
        sum_into(logits, shape, Write::Replace, None, &[term])
    }

    fn gradient(
        gradient: &mut [T],
        scale: f64,
        slopes: Matrix<'_, f32>,
        weight: &Elements<'_>,
    ) -> Result<()> {
        let weight = weight.operand()?;
        let (rows, shape) = (slopes.rows(), (slopes.rows(), weight.columns()));
        if T::DTYPE == DType::F32 {
            let term = Term { scale, lhs: slopes.into(), rhs: weight };
            return sum_into(gradient, shape, Write::Replace, None, &[term]);
        }
        // As in PyTorch, the gradient of logits has the type of the hidden states. Some columns at a time are rounded, so that they
        // are multiplied while they are in the cache.
        let mut sums = vec![0f32; gradient.len()];
        let mut rounded = vec![T::from_f64(0.0); rows * CLASSES.min(slopes.columns())];
        for start in (0..slopes.columns()).step_by(CLASSES) {
            let classes = start..slopes.columns().min(start + CLASSES);
            let rounded = &mut rounded[..rows * classes.len()];
            let part = slopes.block(0..rows, classes.clone())?;
            let from = part.data().chunks(part.strides().0);
            for_each(rounded.chunks_exact_mut(classes.len()).zip(from), |(rounded, slopes)| {
                <T as Element>::round(&slopes[..rounded.len()], rounded);
            });
            let lhs = Matrix::contiguous(rounded, rows, classes.len())?.into();
            let rhs = weight.block(classes, 0..weight.columns())?;
            sum_into(&mut sums, shape, Write::Add, None, &[Term { scale, lhs, rhs }])?;
        }
        <T as Element>::round(&sums, gradient);
        Ok(())
    }
}
