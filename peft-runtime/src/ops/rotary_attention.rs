//! Attention over queries and keys that are rotated on the way in, in both passes: the graph keeps them as they came, and
//! nothing else of them.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};

use super::attention::{AttentionOptions, FusedAttention, attention, in_tensors, no_common_float};
use super::cpu::attention::Heads;
use super::cpu::real::Real;
use super::is_half_on_cpu;
use super::linear::contiguous_slice;
use super::rotary::{Rotary, rotary};

/// [`attention`] of queries and keys that [`rotary`] rotates, which are the same tokens.
///
/// The result is that of the functions one after the other. In training it takes less memory: rotated queries and keys are
/// formed once more in the backward pass. For a cache, which holds rotated keys, the two functions are there.
///
/// `q` has shape `[batch, length, heads, head_dim]`, `k` and `v` `[batch, length, kv_heads, head_dim]`, and `cos` and `sin`
/// `[length, head_dim / 2]`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use peft_runtime::nn::{AttentionOptions, attention, rotary, rotary_attention};
///
/// let q = Tensor::randn(0f32, 1.0, (1, 5, 4, 8), &Device::Cpu)?;
/// let (k, v) = (q.narrow(2, 0, 2)?, q.narrow(2, 2, 2)?);
/// let angles = Tensor::randn(0f32, 1.0, (5, 4), &Device::Cpu)?;
/// let (cos, sin) = (angles.cos()?, angles.sin()?);
/// let options = AttentionOptions { scale: 8f64.sqrt().recip(), causal: true, mask: None, dropout: None };
/// let y = rotary_attention(&q, &k, &v, &cos, &sin, &options)?;
/// let same = attention(&rotary(&q, &cos, &sin)?, &rotary(&k, &cos, &sin)?, &v, &options)?;
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, same.flatten_all()?.to_vec1::<f32>()?);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If the shapes do not fit, or the tensors do not hold floats of one dtype.
pub fn rotary_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    options: &AttentionOptions<'_>,
) -> Result<Tensor> {
    if !q.device().is_cpu() || is_half_on_cpu(q) {
        return attention(&rotary(q, cos, sin)?, &rotary(k, cos, sin)?, v, options);
    }
    Rotary::check(k, cos, sin)?;
    let op = RotaryAttention {
        rotation: Rotary::new(q, cos, sin)?,
        attention: FusedAttention::new(q, k, v, options)?,
    };
    q.contiguous()?.apply_op3(&k.contiguous()?, v, op)
}

/// The op on the CPU.
struct RotaryAttention {
    rotation: Rotary,
    attention: FusedAttention,
}

impl RotaryAttention {
    fn forward<T: Real>(&self, q: &[T], k: &[T], v: &[T], layouts: [&Layout; 3]) -> Result<Vec<T>> {
        let [q_layout, k_layout, v_layout] = layouts;
        let q = self.rotation.rotated(contiguous_slice(q, q_layout)?, q_layout.dims(), 1.0)?;
        let k = self.rotation.rotated(contiguous_slice(k, k_layout)?, k_layout.dims(), 1.0)?;
        self.attention.forward(
            Heads::from_layout(&q, &Layout::contiguous(q_layout.shape()))?,
            Heads::from_layout(&k, &Layout::contiguous(k_layout.shape()))?,
            Heads::from_layout(v, v_layout)?,
        )
    }

    fn gradients<T: Real>(
        &self,
        inputs: [&Tensor; 3],
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let [q, k, v] = inputs;
        let rotated =
            (self.rotation.rotated_tensor::<T>(q, 1.0)?, self.rotation.rotated_tensor::<T>(k, 1.0)?);
        let wanted = inputs.map(Tensor::track_op);
        let mut found = self.attention.gradients::<T>([&rotated.0, &rotated.1, v], wanted, y, grad)?;
        for (gradient, input) in found.iter_mut().zip([q, k]) {
            if let Some(gradient) = gradient {
                self.rotation.rotate_back(gradient, input.dims())?;
            }
        }
        in_tensors(found, inputs)
    }
}

impl CustomOp3 for RotaryAttention {
    fn name(&self) -> &'static str {
        "rotary-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let layouts = [ql, kl, vl];
        let y = match (q, k, v) {
            (CpuStorage::F32(q), CpuStorage::F32(k), CpuStorage::F32(v)) => {
                CpuStorage::F32(self.forward(q, k, v, layouts)?)
            }
            (CpuStorage::F64(q), CpuStorage::F64(k), CpuStorage::F64(v)) => {
                CpuStorage::F64(self.forward(q, k, v, layouts)?)
            }
            (q, k, v) => return no_common_float([q, k, v]),
        };
        Ok((y, ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dq, dk, dv] = match q.dtype() {
            DType::F64 => self.gradients::<f64>([q, k, v], y, grad)?,
            _ => self.gradients::<f32>([q, k, v], y, grad)?,
        };
        Ok((dq, dk, dv))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Result, Tensor, Var};

    use super::rotary_attention;
    use crate::ops::attention::{AttentionOptions, attention};
    use crate::ops::dropout::DropoutMask;
    use crate::ops::gradcheck::{assert_agree, assert_differences, assert_precise, values};
    use crate::ops::rotary::rotary;

    const LENGTH: usize = 70;

    /// Queries of four heads, and keys and values of two.
    fn inputs() -> Vec<Tensor> {
        let tokens = |label, heads| values(label, &[2, LENGTH, heads, 6]);
        vec![tokens("q", 4), tokens("k", 2), tokens("v", 2)]
    }

    /// Cosines and sines of angles that no pattern is in.
    fn angles(dtype: DType) -> (Tensor, Tensor) {
        let angles = values("angles", &[LENGTH, 3]);
        (angles.cos().unwrap().to_dtype(dtype).unwrap(), angles.sin().unwrap().to_dtype(dtype).unwrap())
    }

    fn padding() -> Tensor {
        let flags: Vec<u32> =
            (0..2 * LENGTH).map(|index| u32::from(!(LENGTH..LENGTH + 2).contains(&index))).collect();
        Tensor::from_vec(flags, (2, LENGTH), &Device::Cpu).unwrap()
    }

    /// With a third of the probabilities dropped.
    fn options(causal: bool, mask: Option<&Tensor>) -> AttentionOptions<'_> {
        AttentionOptions { scale: 0.6, causal, mask, dropout: Some(DropoutMask::new(11, 1.0 / 3.0)) }
    }

    fn fused(t: &[Tensor], options: &AttentionOptions<'_>) -> Result<Tensor> {
        let (cos, sin) = angles(t[0].dtype());
        rotary_attention(&t[0], &t[1], &t[2], &cos, &sin, options)
    }

    fn one_after_the_other(t: &[Tensor], options: &AttentionOptions<'_>) -> Result<Tensor> {
        let (cos, sin) = angles(t[0].dtype());
        attention(&rotary(&t[0], &cos, &sin)?, &rotary(&t[1], &cos, &sin)?, &t[2], options)
    }

    #[test]
    fn value_and_gradients_are_those_of_the_ops_one_after_the_other_and_of_difference_quotients() {
        let mask = padding();
        for (causal, mask) in [(true, None), (false, Some(&mask)), (true, Some(&mask))] {
            let options = options(causal, mask);
            let ours = |t: &[Tensor]| fused(t, &options);
            assert_agree(&ours, &|t| one_after_the_other(t, &options), &inputs(), 1e-12, "fused");
            assert_differences(&ours, &inputs(), 1e-6, "fused");
        }
    }

    #[test]
    fn low_precision_is_near_f64() {
        // Angles that every float type holds exactly: their rounding is no error of the op.
        let (cos, sin) = angles(DType::BF16);
        let ours = |t: &[Tensor]| {
            let in_dtype = |tensor: &Tensor| tensor.to_dtype(t[0].dtype());
            rotary_attention(&t[0], &t[1], &t[2], &in_dtype(&cos)?, &in_dtype(&sin)?, &options(true, None))
        };
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 2e-2), (DType::BF16, 1e-1)] {
            assert_precise(&ours, &inputs(), dtype, tolerance, "rotary attention");
        }
    }

    #[test]
    fn strided_inputs_give_the_same() {
        let heads_first: Vec<Tensor> =
            inputs().iter().map(|tensor| tensor.transpose(1, 2).unwrap().contiguous().unwrap()).collect();
        let options = options(true, None);
        let turned = |t: &[Tensor]| t.iter().map(|tensor| tensor.transpose(1, 2)).collect::<Result<Vec<_>>>();
        let strided = |t: &[Tensor]| fused(&turned(t)?, &options);
        let copied = |t: &[Tensor]| {
            let copies = turned(t)?.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
            fused(&copies, &options)
        };
        assert_agree(&strided, &copied, &heads_first, 1e-12, "strided");
    }

    #[test]
    fn constants_get_no_gradient() {
        for tracked in 0..3 {
            let mut operands = inputs();
            let variable = Var::from_tensor(&operands[tracked]).unwrap();
            operands[tracked] = variable.as_tensor().clone();
            let y = fused(&operands, &options(true, None)).unwrap();
            let grads = y.sum_all().unwrap().backward().unwrap();
            for (index, operand) in operands.iter().enumerate() {
                assert_eq!(grads.get(operand).is_some(), index == tracked, "input {index} of {tracked}");
            }
        }
    }

    #[test]
    fn angles_that_do_not_fit_queries_and_keys_are_refused() {
        let t = inputs();
        let (cos, sin) = angles(DType::F64);
        let refused = |q: &Tensor, k: &Tensor, v: &Tensor, cos: &Tensor| {
            rotary_attention(q, k, v, cos, &sin, &options(false, None)).is_err()
        };
        assert!(!refused(&t[0], &t[1], &t[2], &cos));
        assert!(refused(&t[0], &t[1], &t[2], &cos.narrow(0, 0, 5).unwrap()));
        let first = |tensor: &Tensor| tensor.narrow(1, 0, 5).unwrap();
        // Keys of other tokens than the queries.
        assert!(refused(&t[0], &first(&t[1]), &first(&t[2]), &cos));
    }
}
