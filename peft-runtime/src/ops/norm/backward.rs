//! The backward pass of both norms.

use candle_core::{Device, Result, Tensor};

use super::Norm;
use super::kernel::{add_parameter_gradients, input_gradient};
use crate::ops::cpu::float::Float;
use crate::ops::cpu::real::Real;
use crate::ops::cpu::slices::add;
use crate::ops::cpu::threads::{for_each_with, map};
use crate::ops::elements::Elements;

/// The number of rows whose shares of a parameter's gradient one task adds up.
const ROWS_OF_TASK: usize = 32;

impl Norm {
    /// The gradients of input, weight and bias, where they are part of a graph.
    pub(super) fn gradients<T: Float>(
        self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let grad = grad.contiguous()?;
        let (x_elements, weight_elements, grad_elements) =
            (Elements::of(x), Elements::of(weight), Elements::of(&grad));
        let (values, dy) = (x_elements.as_slice::<T>()?, grad_elements.as_slice::<T>()?);
        let dx = match x.track_op() {
            true => {
                let dx = self.input_gradient(values, weight_elements.as_slice()?, dy);
                Some(Tensor::from_vec(dx, x.dims(), &Device::Cpu)?)
            }
            false => None,
        };
        let (weight_tracks, bias_tracks) = (weight.track_op(), bias.is_some_and(Tensor::track_op));
        if !weight_tracks && !bias_tracks {
            return Ok([dx, None, None]);
        }
        let width = weight.elem_count();
        let mut dweight = self.parameter_gradients(values, dy, width);
        let dbias = dweight.split_off(width);
        let tensor = |wanted: bool, values: Vec<T::Wide>| {
            wanted.then(|| Tensor::from_vec(values, width, &Device::Cpu)).transpose()
        };
        Ok([dx, tensor(weight_tracks, dweight)?, tensor(bias_tracks, dbias)?])
    }

    fn input_gradient<T: Float>(self, x: &[T], weight: &[T::Wide], dy: &[T]) -> Vec<T> {
        let width = weight.len().max(1);
        let mut dx = vec![T::from_f64(0.0); x.len()];
        let rows = dx.chunks_mut(width).zip(x.chunks(width).zip(dy.chunks(width)));
        for_each_with(rows, <[Vec<T::Wide>; 3]>::default, |[wide_x, wide_dy, wide_dx], (dx, (x, dy))| {
            let (x, dy) = (T::read(x, wide_x), T::read(dy, wide_dy));
            let eps = T::Wide::of(self.eps);
            T::write(dx, wide_dx, |dx| input_gradient(dx, x, dy, weight, eps, self.centred));
        });
        dx
    }

    /// The gradients of weight and bias, one after the other. The order of additions does not depend on the threads.
    fn parameter_gradients<T: Float>(self, x: &[T], dy: &[T], width: usize) -> Vec<T::Wide> {
        let row = width.max(1);
        let task = ROWS_OF_TASK * row;
        let shares = map(x.chunks(task).zip(dy.chunks(task)), |(x, dy)| {
            let mut share = vec![T::Wide::ZERO; 2 * width];
            let (dweight, dbias) = share.split_at_mut(width);
            let [mut wide_x, mut wide_dy] = [const { Vec::new() }; 2];
            for (x, dy) in x.chunks(row).zip(dy.chunks(row)) {
                let (x, dy) = (T::read(x, &mut wide_x), T::read(dy, &mut wide_dy));
                add_parameter_gradients(dweight, dbias, x, dy, T::Wide::of(self.eps), self.centred);
            }
            share
        });
        let mut sum = vec![T::Wide::ZERO; 2 * width];
        for share in &shares {
            add(&mut sum, share);
        }
        sum
    }
}
