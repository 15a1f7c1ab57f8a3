//! The two products with the output layer, of hidden states in any float.

use candle_core::Result;

use crate::ops::cpu::element::Element;
use crate::ops::cpu::float::Float;
use crate::ops::cpu::matmul::matmul_into;
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::cpu::operand::Operand;
use crate::ops::cpu::sums::{Term, sum_into};
use crate::ops::elements::Elements;

/// A float that hidden states have; the weight may have another one, if both are at most f32.
pub(super) trait OutputLayer: Float {
    /// `logits = hidden·Wᵀ`.
    fn logits(logits: &mut [Self::Wide], hidden: Matrix<'_, Self>, weight: &Elements<'_>) -> Result<()>;

    /// `gradient = scale · slopes·W`, rounded once.
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
        let shape = (slopes.rows(), weight.columns());
        let term = Term { scale, lhs: slopes.into(), rhs: weight };
        sum_into(gradient, shape, Write::Replace, None, &[term])
    }
}
