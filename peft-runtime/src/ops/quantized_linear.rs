//! The frozen linear map with a quantized weight: y = x·Wᵀ + b with a gradient for x alone.

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};

use super::attach::with_gradient;
use super::cpu::dequantize::QuantizedMatrix;
use super::cpu::matmul::Write;
use super::cpu::real::Real;
use super::linear::{add_bias, contiguous_slice, output_dims};
use super::quantized_matmul::{multiply_transposed, product};

/// `x·Wᵀ + b` in the dtype of `x`, for `x` of shape `[…, in]` and `weight` of shape `[out, in]`.
///
/// The product is that with the dense weight, in f32, or in f64 where `x` is; half precision is rounded once. On the CPU the
/// weight is made dense a tile at a time; on other devices the whole of it is for the length of a call.
///
/// A bias that is a variable trains; the weight never gets a gradient.
pub(crate) fn quantized_linear(x: &Tensor, weight: &Arc<QTensor>, bias: Option<&Tensor>) -> Result<Tensor> {
    let dtype = match x.dtype() {
        DType::F64 => DType::F64,
        DType::F32 | DType::F16 | DType::BF16 => DType::F32,
        _ => bail!("a linear layer takes floats only"),
    };
    let bias = bias.map(|bias| bias.to_dtype(dtype)).transpose()?;
    let wide = x.to_dtype(dtype)?;
    let y = match bias.as_ref() {
        Some(bias) if bias.track_op() => add_bias(frozen(&wide, weight, None)?, Some(bias)),
        bias => frozen(&wide, weight, bias),
    };
    y?.to_dtype(x.dtype())
}

fn frozen(x: &Tensor, weight: &Arc<QTensor>, bias: Option<&Tensor>) -> Result<Tensor> {
    let (rows, dims) = output_dims(x, weight.shape().dims2()?)?;
    let x = x.contiguous()?;
    if x.device().is_cpu() && weight.device().is_cpu() {
        return x.apply_op1(FrozenQuantized::new(weight, bias));
    }
    let (weight, input_dims) = (Arc::clone(weight), x.dims().to_vec());
    let (out_features, in_features) = weight.shape().dims2()?;
    let dense = move |like: &Tensor| weight.dequantize(like.device())?.to_dtype(like.dtype());
    let y = x.detach().reshape((rows, in_features))?.matmul(&dense(&x)?.t()?)?.reshape(dims)?;
    let y = add_bias(y, bias.map(Tensor::detach).as_ref())?;
    with_gradient(&x, y, move |grad| {
        let rows = grad.contiguous()?.reshape((rows, out_features))?;
        rows.matmul(&dense(grad)?)?.reshape(input_dims.as_slice())
    })
}

/// The map as an op on the CPU, for f32 and f64.
pub(super) struct FrozenQuantized {
    weight: Arc<QTensor>,
    pub(super) bias: Option<Tensor>,
}

impl FrozenQuantized {
    pub(super) fn new(weight: &Arc<QTensor>, bias: Option<&Tensor>) -> Self {
        Self { weight: Arc::clone(weight), bias: bias.map(Tensor::detach) }
    }

    /// The product on rows in main memory; the result starts as the bias.
    pub(super) fn forward_rows<T: Real>(&self, x: &[T], rows: usize) -> Result<Vec<T>> {
        let (out_features, _) = self.weight.shape().dims2()?;
        let (mut y, write) = match &self.bias {
            Some(bias) => (bias.to_dtype(T::DTYPE)?.to_vec1::<T>()?.repeat(rows), Write::Add),
            None => (vec![T::from_f64(0.0); rows * out_features], Write::Replace),
        };
        self.multiply(&mut y, write, x, rows)?;
        Ok(y)
    }

    /// `y (+)= x·Wᵀ` on rows in main memory.
    pub(super) fn multiply<T: Real>(&self, y: &mut [T], write: Write, x: &[T], rows: usize) -> Result<()> {
        multiply_transposed(y, write, x, rows, &QuantizedMatrix::new(&self.weight)?)
    }

    /// dx = dy·W for a contiguous `grad` of shape `[rows, out]`.
    pub(super) fn input_gradient(&self, grad: &Tensor) -> Result<Tensor> {
        let (storage, layout) = grad.storage_and_layout();
        match &*storage {
            Storage::Cpu(CpuStorage::F32(grad)) => self.backward_rows(contiguous_slice(grad, layout)?),
            Storage::Cpu(CpuStorage::F64(grad)) => self.backward_rows(contiguous_slice(grad, layout)?),
            _ => bail!("the gradient of a quantized linear layer is not of f32 or f64 on the CPU"),
        }
    }

    fn backward_rows<T: Real>(&self, grad: &[T]) -> Result<Tensor> {
        let weight = QuantizedMatrix::new(&self.weight)?;
        let rows = grad.len() / weight.rows().max(1);
        Tensor::from_vec(product(grad, rows, &weight)?, (rows, weight.columns()), &Device::Cpu)
    }
}

impl CustomOp1 for FrozenQuantized {
    fn name(&self) -> &'static str {
        "frozen-quantized-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (out_features, in_features) = self.weight.shape().dims2()?;
        let rows = layout.shape().elem_count() / in_features.max(1);
        let y = match storage {
            CpuStorage::F32(x) => CpuStorage::F32(self.forward_rows(contiguous_slice(x, layout)?, rows)?),
            CpuStorage::F64(x) => CpuStorage::F64(self.forward_rows(contiguous_slice(x, layout)?, rows)?),
            _ => bail!("a quantized linear layer takes f32 or f64"),
        };
        let mut dims = layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = out_features;
        }
        Ok((y, Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (out_features, in_features) = self.weight.shape().dims2()?;
        let rows = x.elem_count() / in_features.max(1);
        let grad = grad.contiguous()?.reshape((rows, out_features))?;
        self.input_gradient(&grad)?.reshape(x.dims()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{DType, Device, Tensor, Var};

    use super::quantized_linear;
    use crate::ops::cpu::dequantize::tests::GGML_TYPES;
    use crate::ops::linear::linear;
    use crate::ops::low_rank::{LowRank, can_fuse_quantized, linear_low_rank, quantized_linear_low_rank};

    const IN: usize = 512;
    const OUT: usize = 37;

    fn random(shape: &[usize], dtype: DType) -> Tensor {
        Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    }

    fn variable(shape: &[usize], dtype: DType) -> Var {
        Var::from_tensor(&random(shape, dtype)).unwrap()
    }

    /// A quantized weight `[out, in]` and the same made dense.
    fn weights(ggml: GgmlDType, dtype: DType) -> (Arc<QTensor>, Tensor) {
        let quantized = QTensor::quantize(&random(&[OUT, IN], DType::F32), ggml).unwrap();
        let dense = quantized.dequantize(&Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        (Arc::new(quantized), dense)
    }

    /// Checks that two tensors differ by at most `tolerance` of the largest value.
    fn near(ours: &Tensor, theirs: &Tensor, tolerance: f64, what: &str) {
        assert_eq!((ours.dims(), ours.dtype()), (theirs.dims(), theirs.dtype()), "{what}");
        let values = |tensor: &Tensor| {
            let flat = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
            flat.to_vec1::<f64>().unwrap()
        };
        let (ours, theirs) = (values(ours), values(theirs));
        let largest = theirs.iter().fold(0f64, |largest, value| largest.max(value.abs()));
        let distance = ours.iter().zip(&theirs).fold(0f64, |most, (a, b)| most.max((a - b).abs()));
        assert!(distance <= tolerance * largest, "{what}: {distance} of {largest}");
    }

    /// Checks two results, and the gradients of the sum of their squares.
    fn alike(ours: &Tensor, theirs: &Tensor, variables: &[&Var], tolerance: f64, what: &str) {
        near(ours, theirs, tolerance, what);
        let grads = |y: &Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let (our_grads, their_grads) = (grads(ours), grads(theirs));
        for (place, variable) in variables.iter().enumerate() {
            let what = format!("{what}, variable {place}");
            near(our_grads.get(variable).unwrap(), their_grads.get(variable).unwrap(), tolerance, &what);
        }
        assert_eq!(our_grads.get_ids().count(), variables.len(), "{what}: something else has a gradient");
    }

    #[test]
    fn every_type_computes_what_its_dense_weight_does() {
        for ggml in GGML_TYPES {
            let (quantized, dense) = weights(ggml, DType::F32);
            let bias = random(&[OUT], DType::F32);
            for (dims, bias) in [(vec![1, IN], None), (vec![2, 35, IN], Some(&bias)), (vec![IN], None)] {
                let x = variable(&dims, DType::F32);
                let ours = quantized_linear(&x, &quantized, bias).unwrap();
                let theirs = linear(&x, &dense, bias).unwrap();
                alike(&ours, &theirs, &[&x], 1e-5, &format!("{ggml:?} {dims:?}"));
            }
        }
    }

    #[test]
    fn every_type_does_so_fused_with_a_low_rank_product() {
        for ggml in GGML_TYPES {
            let (quantized, dense) = weights(ggml, DType::F32);
            let bias = random(&[OUT], DType::F32);
            let (a, b) = (variable(&[4, IN], DType::F32), variable(&[OUT, 4], DType::F32));
            let terms = LowRank { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scaling: 0.5 };
            for dims in [vec![1, IN], vec![2, 35, IN]] {
                let x = variable(&dims, DType::F32);
                assert!(can_fuse_quantized(&x, &quantized, Some(&bias), &terms));
                let ours = quantized_linear_low_rank(&x, &quantized, Some(&bias), &terms).unwrap();
                let theirs = linear_low_rank(&x, &dense, Some(&bias), &terms).unwrap();
                alike(&ours, &theirs, &[&x, &a, &b], 1e-5, &format!("{ggml:?} {dims:?}"));
            }
            let x = random(&[3, IN], DType::F32);
            let ours = quantized_linear_low_rank(&x, &quantized, None, &terms).unwrap();
            let theirs = linear_low_rank(&x, &dense, None, &terms).unwrap();
            alike(&ours, &theirs, &[&a, &b], 1e-5, &format!("{ggml:?}, constant input"));
        }
    }

    #[test]
    fn other_dtypes_are_computed_as_wide_as_they_are() {
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::BF16, 2e-2), (DType::F16, 2e-3)] {
            let (quantized, dense) = weights(GgmlDType::Q4_1, dtype);
            let bias = random(&[OUT], DType::F32);
            let x = variable(&[3, 5, IN], dtype);
            let ours = quantized_linear(&x, &quantized, Some(&bias)).unwrap();
            let theirs = linear(&x, &dense, Some(&bias.to_dtype(dtype).unwrap())).unwrap();
            alike(&ours, &theirs, &[&x], tolerance, &format!("{dtype:?}"));
        }
    }

    #[test]
    fn a_strided_input_is_read_as_it_is() {
        let (quantized, dense) = weights(GgmlDType::Q5_1, DType::F32);
        let x = variable(&[IN, 6], DType::F32);
        let turned = x.t().unwrap();
        let ours = quantized_linear(&turned, &quantized, None).unwrap();
        let theirs = linear(&turned, &dense, None).unwrap();
        near(&ours, &theirs, 1e-5, "forward");
        let grad =
            |y: Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap().get(&x).unwrap().clone();
        near(&grad(ours), &grad(theirs), 1e-5, "backward");
    }

    #[test]
    fn a_bias_that_is_a_variable_trains() {
        let (quantized, dense) = weights(GgmlDType::Q8_0, DType::F32);
        let (x, bias) = (variable(&[7, IN], DType::F32), variable(&[OUT], DType::F32));
        let ours = quantized_linear(&x, &quantized, Some(&bias)).unwrap();
        let theirs = linear(&x, &dense, Some(&bias)).unwrap();
        near(&ours, &theirs, 1e-5, "forward");
        for variable in [&x, &bias] {
            let grad = |y: &Tensor| {
                y.sqr().unwrap().sum_all().unwrap().backward().unwrap().get(variable).unwrap().clone()
            };
            near(&grad(&ours), &grad(&theirs), 1e-5, "backward");
        }
    }

    #[test]
    fn inputs_that_do_not_fit_are_refused() {
        let (quantized, _) = weights(GgmlDType::Q4_0, DType::F32);
        let wrong = |x: Tensor| quantized_linear(&x, &quantized, None).unwrap_err().to_string();
        assert!(wrong(random(&[2, IN + 1], DType::F32)).contains("512 input features"));
        assert!(wrong(Tensor::zeros((2, IN), DType::U32, &Device::Cpu).unwrap()).contains("floats only"));
        let short = random(&[OUT - 1], DType::F32);
        let x = random(&[2, IN], DType::F32);
        assert!(quantized_linear(&x, &quantized, Some(&short)).is_err());
    }
}
