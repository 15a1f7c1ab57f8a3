//! Layer norm and RMS norm over the last dimension.

use candle_core::{D, DType, Result, Tensor};

/// `(x − mean) / √(variance + eps) · weight + bias`. <https://arxiv.org/abs/1607.06450>
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let wide = x.to_dtype(internal_dtype(x))?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let y = normalised(&centred, eps)?.to_dtype(x.dtype())?.broadcast_mul(weight)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// `x / √(mean(x²) + eps) · weight`. <https://arxiv.org/abs/1910.07467>
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = x.to_dtype(internal_dtype(x))?;
    normalised(&wide, eps)?.to_dtype(x.dtype())?.broadcast_mul(weight)
}

fn normalised(x: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean_square + eps)?.sqrt()?)
}

fn internal_dtype(x: &Tensor) -> DType {
    match x.dtype() {
        DType::F16 | DType::BF16 => DType::F32,
        dtype => dtype,
    }
}
