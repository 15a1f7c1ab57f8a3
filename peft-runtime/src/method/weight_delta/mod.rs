//! What the methods share that add a matrix ΔW to the weight and drop some or all of its rows during training.

mod settings;

use candle_core::{DType, Device, Result, Tensor};

use crate::adapter::{Call, Geometry};
use crate::ops::conv::conv;
use crate::ops::graph::attach::with_gradient;
use crate::ops::scale::scale_features;
use crate::ops::{add_promoted, is_half_on_cpu, promoted};

pub use settings::DeltaSettings;

/// How often rows of ΔW, or the adapter of a layer, are dropped while training.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeltaDropout {
    /// The probability that a row of ΔW is dropped in a pass.
    pub(super) rows: f64,
    /// Whether the remaining rows are divided by the share of rows that remain.
    pub(super) rescales: bool,
    /// The probability that the layer runs without the adapter in a pass.
    pub(super) module: f64,
}

impl DeltaDropout {
    pub(super) fn acts(&self, call: &Call<'_>) -> bool {
        call.training && (self.rows > 0.0 || self.module > 0.0)
    }

    /// What each output of the adapter's part is multiplied by in this pass, `[out]`; `None` if nothing is dropped.
    fn draw(&self, call: &Call<'_>, outputs: usize, device: &Device) -> Result<Option<Tensor>> {
        let kept = |elements: usize, probability: f64| -> Result<Tensor> {
            let ones = Tensor::ones(elements, DType::F32, device)?;
            call.dropout(&ones, probability)? * (1.0 - probability)
        };
        if !self.acts(call) {
            return Ok(None);
        }
        let mut factors = match self.module > 0.0 {
            true => kept(1, self.module)?.broadcast_as(outputs)?,
            false => Tensor::ones(outputs, DType::F32, device)?,
        };
        if self.rows > 0.0 {
            let mut rows = kept(outputs, self.rows)?;
            if self.rescales {
                // If no row is left, PEFT divides by zero.
                let share = rows.mean_keepdim(0)?.maximum(f64::from(f32::MIN_POSITIVE))?;
                rows = rows.broadcast_div(&share)?;
            }
            factors = (factors * rows)?;
        }
        Ok(Some(factors))
    }

    /// `output` plus the part, or plus what dropout leaves of it.
    pub(super) fn add(
        &self,
        call: &Call<'_>,
        geometry: &Geometry,
        output: &Tensor,
        part: &Tensor,
    ) -> Result<Tensor> {
        match self.draw(call, geometry.out_features(), part.device())? {
            None => add_promoted(output, part),
            Some(factors) => {
                let factors = factors.to_dtype(part.dtype())?;
                add_promoted(output, &scale_features(part, &factors, geometry.feature_axis())?)
            }
        }
    }
}

/// What the layer computes with ΔW in place of its weight, and without a bias. `delta` has the shape of the weight.
pub(super) fn apply(geometry: &Geometry, delta: &Tensor, x: &Tensor) -> Result<Tensor> {
    let x = x.to_dtype(delta.dtype())?;
    if let Geometry::Conv { settings, .. } = geometry {
        return conv(&x, delta, *settings);
    }
    let mut shape = x.dims().to_vec();
    let in_features = shape.pop().unwrap_or_default();
    shape.push(geometry.out_features());
    times_transposed(&x.reshape(((), in_features))?, delta)?.reshape(shape)
}

/// `x·Wᵀ` of two matrices, with a gradient only for those that are part of a graph. Half precision on the CPU is computed in
/// f32 and rounded once.
pub(super) fn times_transposed(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    if is_half_on_cpu(x) {
        let y = times_transposed(&x.to_dtype(DType::F32)?, &w.to_dtype(DType::F32)?)?;
        return y.to_dtype(x.dtype());
    }
    if x.track_op() && w.track_op() {
        return x.matmul(&w.t()?);
    }
    // candle's own product keeps a gradient for a constant as well.
    let (constant_x, constant_w) = (x.detach(), w.detach());
    let y = constant_x.matmul(&constant_w.t()?)?;
    if w.track_op() {
        return with_gradient(w, y, move |grad| grad.contiguous()?.t()?.matmul(&constant_x));
    }
    with_gradient(x, y, move |grad| grad.contiguous()?.matmul(&constant_w))
}

/// `weight + delta` in the wider of the two dtypes, rounded to that of the weight.
pub(super) fn add_to_weight(weight: &Tensor, delta: &Tensor) -> Result<Tensor> {
    let dtype = promoted(weight.dtype(), delta.dtype());
    (weight.to_dtype(dtype)? + delta.to_dtype(dtype)?)?.to_dtype(weight.dtype())
}

/// The product of a core with a factor along each of its first two dimensions: `Σ core[i, j, k…] · left[i, p] ·
/// right[j, q]`, of shape `[p, q, k…]`, for a core `[r, r, k…]`, and factors `[r, p]` and `[r, q]`.
pub(super) fn core_product(core: &Tensor, left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let (rank, _) = left.dims2()?;
    let (outputs, inputs) = (left.dim(1)?, right.dim(1)?);
    let elements = core.elem_count() / (rank * rank).max(1);
    // [i, k, j] · [j, q]
    let inner = core.reshape((rank, rank, elements))?.transpose(1, 2)?.contiguous()?;
    let inner = inner.reshape((rank * elements, rank))?.matmul(right)?;
    // [p, i] · [i, k · q]
    let product = left.t()?.matmul(&inner.reshape((rank, elements * inputs))?)?;
    product.reshape((outputs, elements, inputs))?.transpose(1, 2)
}

/// Whether a convolution has a window of more than one element.
pub(super) fn has_window(geometry: &Geometry) -> bool {
    matches!(geometry, Geometry::Conv { kernel, .. } if kernel.iter().any(|size| *size != 1))
}

/// The shape of the core that goes with a convolution's window: PEFT gives the window two dimensions, however many the
/// layer has.
pub(super) fn core_shape(rank: usize, kernel: &[usize]) -> Vec<usize> {
    let mut shape = vec![rank, rank];
    shape.extend(kernel);
    shape.resize(4, 1);
    shape
}

/// The dimensions of a layer's weight as a matrix: outputs, inputs of a group, elements of the window.
pub(super) fn weight_sides(geometry: &Geometry) -> (usize, usize, usize) {
    match geometry {
        Geometry::Conv { in_channels, out_channels, kernel, settings } => {
            (*out_channels, in_channels / settings.groups.max(1), kernel.iter().product())
        }
        other => (other.out_features(), other.in_features(), 1),
    }
}
