//! The distance of factors from orthonormal ones, which AdaLoRA adds to the loss.

use candle_core::{DType, Device, Result, Tensor};

use crate::ops::graph::attach::with_gradient;
use crate::ops::matmul::product;
use crate::ops::widened;

/// `‖P·Pᵀ − I‖_F` for `P` of shape `[ranks, n]`, as a scalar with a gradient for `P`.
pub(super) fn row_distance(rows: &Tensor) -> Result<Tensor> {
    let rows = &widened(rows)?;
    let constant = rows.detach();
    let excess = (product(&constant, &constant.t()?, 1.0)? - identity(&constant)?)?;
    let distance = excess.sqr()?.sum_all()?.sqrt()?;
    let length = distance.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    with_gradient(rows, distance, move |grad| {
        if length == 0.0 {
            return constant.zeros_like();
        }
        product(&excess, &constant, 2.0 / length)?.broadcast_mul(grad)
    })
}

/// The same for the columns of `P`.
pub(super) fn column_distance(columns: &Tensor) -> Result<Tensor> {
    row_distance(&columns.t()?.contiguous()?)
}

fn identity(rows: &Tensor) -> Result<Tensor> {
    Tensor::eye(rows.dim(0)?, rows.dtype(), &Device::Cpu)?.to_device(rows.device())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor, Var};

    use super::{column_distance, row_distance};
    use crate::ops::random::{normal, stream};

    #[test]
    fn value_and_gradient_are_those_of_the_composed_norm() {
        let drawn = normal(&mut stream(0, "p", 0), 1.0, &[3, 7], DType::F64, &Device::Cpu).unwrap();
        let p = Var::from_tensor(&drawn).unwrap();
        let eye = Tensor::eye(3, DType::F64, &Device::Cpu).unwrap();
        let composed = p.matmul(&p.t().unwrap()).unwrap().sub(&eye).unwrap();
        let composed = composed.sqr().unwrap().sum_all().unwrap().sqrt().unwrap();
        let both = [row_distance(&p).unwrap(), column_distance(&p.t().unwrap()).unwrap(), composed];
        let [ours, columns, theirs] = both.map(|distance| {
            let grads = (distance.clone() * 3.0).unwrap().backward().unwrap();
            let grad = grads.get(&p).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            [vec![distance.to_scalar::<f64>().unwrap()], grad].concat()
        });
        for ours in [ours, columns] {
            assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-9), "{ours:?} {theirs:?}");
        }
    }

    #[test]
    fn orthonormal_rows_have_no_distance_and_no_gradient() {
        let p = Var::from_tensor(&Tensor::eye(3, DType::F32, &Device::Cpu).unwrap()).unwrap();
        let distance = row_distance(&p).unwrap();
        assert_eq!(distance.to_scalar::<f32>().unwrap(), 0.0);
        let grads = distance.backward().unwrap();
        assert_eq!(grads.get(&p).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    }
}
