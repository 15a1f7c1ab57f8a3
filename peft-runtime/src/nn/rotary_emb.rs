//! The functions of `candle_nn::rotary_emb`, with backward passes.
//!
//! candle's fused functions compute without a graph, so that queries and keys do not train. These have the same names, arguments and
//! values; inputs need not be contiguous. [`nn::rotary`](crate::nn::rotary) is faster in training.

use candle_core::{Result, Tensor};

use crate::ops::graph::attach::with_gradient;

pub use candle_nn::rotary_emb::{rope_i_slow, rope_slow};

/// Rotates element i of the first half of each head with element i of the second, for `xs` of shape `[batch, heads, length, size]`.
/// <https://arxiv.org/abs/2104.09864>
///
/// `cos` and `sin` have shape `[positions, size / 2]`, of which the first `length` count, or `[batch, positions, size / 2]`; they are constants.
///
/// # Errors
/// If the shapes do not fit.
pub fn rope(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotated(xs, cos, sin, candle_nn::rotary_emb::rope)
}

/// Rotates neighbours in each head, elements 2i and 2i + 1; shapes are those of [`rope`].
///
/// # Errors
/// If the shapes do not fit.
pub fn rope_i(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotated(xs, cos, sin, candle_nn::rotary_emb::rope_i)
}

/// [`rope`] for `xs` of shape `[batch, length, heads, size]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn rope_thd(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotated(xs, cos, sin, candle_nn::rotary_emb::rope_thd)
}

type Rotation = fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;

/// The gradient is rotated by the opposite angles.
fn rotated(xs: &Tensor, cos: &Tensor, sin: &Tensor, rotation: Rotation) -> Result<Tensor> {
    let angles = |tensor: &Tensor| tensor.detach().contiguous();
    let (cos, sin) = (angles(cos)?, angles(sin)?);
    let y = rotation(&xs.detach().contiguous()?, &cos, &sin)?;
    with_gradient(xs, y, move |grad| rotation(&grad.detach().contiguous()?, &cos, &sin.neg()?))
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;

    use super::{Rotation, rope, rope_i, rope_i_slow, rope_slow, rope_thd};
    use crate::ops::testing::{assert_agree, assert_differences, random};

    /// [`rope_slow`] with the dimensions of [`rope_thd`].
    fn thd_slow(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> candle_core::Result<Tensor> {
        rope_slow(&xs.transpose(1, 2)?.contiguous()?, cos, sin)?.transpose(1, 2)
    }

    #[test]
    fn rotations_have_the_values_and_gradients_of_candles_slow_ones() {
        let angle = random("angle", &[5, 3]);
        let (cos, sin) = (angle.cos().unwrap(), angle.sin().unwrap());
        let cases: [(&str, Rotation, Rotation, [usize; 4]); 3] = [
            ("rope", rope, rope_slow, [2, 4, 3, 6]),
            ("rope_i", rope_i, rope_i_slow, [2, 4, 3, 6]),
            ("rope_thd", rope_thd, thd_slow, [2, 3, 4, 6]),
        ];
        for (name, ours, slow, shape) in cases {
            let inputs = [random("x", &shape)];
            let (ours, slow) =
                (|x: &[Tensor]| ours(&x[0], &cos, &sin), |x: &[Tensor]| slow(&x[0], &cos, &sin));
            assert_agree(&ours, &slow, &inputs, 1e-12, name);
            assert_differences(&ours, &inputs, 1e-6, name);
        }
    }

    #[test]
    fn each_row_of_a_batch_may_have_its_own_angles_and_strides_do_not_matter() {
        let angle = random("angle", &[2, 3, 2]);
        let (cos, sin) = (angle.cos().unwrap(), angle.sin().unwrap());
        let x = random("x", &[2, 3, 2, 4]);
        let turned = |x: &[Tensor]| rope(&x[0].transpose(1, 2)?, &cos, &sin);
        let by_row = |x: &[Tensor]| {
            let row = |row: usize| {
                let x = x[0].narrow(0, row, 1)?.transpose(1, 2)?.contiguous()?;
                rope_slow(&x, &cos.get(row)?, &sin.get(row)?)
            };
            Tensor::cat(&[row(0)?, row(1)?], 0)
        };
        assert_agree(&turned, &by_row, &[x], 1e-12, "angles of each row");
    }
}
