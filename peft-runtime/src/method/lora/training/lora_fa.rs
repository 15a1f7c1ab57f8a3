//! LoRA-FA: A keeps its initial values, and the gradient of B is adjusted to compensate.
//! <https://arxiv.org/abs/2308.03303>

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::manage::trainable_parameters;
use crate::method::Lora;
use crate::module::{Injectable, leaves};
use crate::ops::decompose::{self, svd};
use crate::ops::matmul::product;
use crate::ops::{widened, widened_value};
use crate::training::{AdamW, AdamWOptions, Optimizer, ParameterGroup, UpdateRule};

/// PEFT's LoRA-FA optimiser: the gradient of B becomes `s⁻²·dB·(A·Aᵀ + 10⁻⁸)⁺`, which is the one closest to the
/// gradient of the full weight; A is never changed. Everything else that trains is updated by AdamW.
///
/// As in PEFT, ε is 1e-6 and weights decay after the step. PEFT rounds the product to bf16 on machines that have it; here it
/// is computed in the dtype of B.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Linear, Module};
/// use peft_runtime::prelude::*;
/// use peft_runtime::train::{LoraFa, Optimizer};
///
/// #[derive(Injectable)]
/// struct Model {
///     linear: Adapted<Linear>,
/// }
///
/// let weight = Tensor::randn(0f32, 1., (6, 5), &Device::Cpu)?;
/// let mut model = Model { linear: Linear::new(weight, None).into() };
/// model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(targets!(Model; "linear")), "default")?;
/// let mut optimizer = LoraFa::new(&model, 1e-3, 0.0)?;
/// let x = Tensor::ones((3, 5), DType::F32, &Device::Cpu)?;
/// let grads = model.linear.forward(&x)?.sqr()?.mean_all()?.backward()?;
/// optimizer.step(&grads, 1.0)?;
/// assert_eq!(optimizer.parameters().len(), 1);
/// # Ok::<(), peft_runtime::Error>(())
/// ```
#[derive(Debug)]
pub struct LoraFa {
    pairs: Vec<Pair>,
    inner: AdamW,
}

#[derive(Debug)]
struct Pair {
    a: Var,
    b: Var,
    scaling: f64,
}

impl LoraFa {
    /// An optimiser over everything in a model that trains, except the factors A of LoRA.
    ///
    /// # Errors
    /// [`Error::MissingFeature`] without the feature `decompositions`; [`Error::Unsupported`] if LoRA adapts a
    /// convolution, whose A is not a matrix; [`Error::Optimizer`] if a value is out of range.
    pub fn new<M: Injectable + ?Sized>(model: &M, learning_rate: f64, weight_decay: f64) -> Result<Self> {
        if !decompose::IS_AVAILABLE {
            return Err(Error::no_decompositions("`LoraFa`"));
        }
        let mut pairs = Vec::new();
        for (path, leaf) in leaves(model) {
            let Some(stack) = leaf.stack().filter(|stack| stack.enabled()) else { continue };
            for slot in stack.active_slots().filter(|slot| slot.trainable) {
                let Some(lora) = slot.adapter().and_then(|adapter| adapter.downcast_ref::<Lora>()) else {
                    continue;
                };
                let pair = Pair::of(lora);
                if pair.a.rank() != 2 || pair.b.rank() != 2 {
                    let reason = format!("on `{path}` its factors are not matrices, which LoRA-FA needs");
                    let (operation, adapter) = ("train", slot.name.clone());
                    return Err(Error::Unsupported { operation, adapter, reason });
                }
                pairs.push(pair);
            }
        }
        let mut parameters = trainable_parameters(model);
        parameters.retain(|(_, var)| !pairs.iter().any(|pair| pair.a.id() == var.id()));
        let group = ParameterGroup::new("all", parameters, learning_rate).with_weight_decay(weight_decay);
        let options = AdamWOptions::new().with_eps(1e-6).with_rule(UpdateRule::Transformers);
        Ok(Self { pairs, inner: AdamW::with_options(vec![group], options)? })
    }
}

impl Pair {
    fn of(lora: &Lora) -> Self {
        Self { a: lora.a().clone(), b: lora.b().clone(), scaling: lora.scaling().unwrap_or(1.0) }
    }

    /// `s⁻²·dB·(A·Aᵀ + 10⁻⁸)⁺`.
    fn project(&self, grad: &Tensor) -> Result<Tensor> {
        const DELTA: f64 = 1e-8;
        let a = widened_value(&self.a)?;
        // Computed on the CPU: not every device has f64, and the matrix is small.
        let gram = product(&a, &a.t()?, 1.0)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        let delta = (Tensor::eye(gram.dim(0)?, DType::F64, &Device::Cpu)? * DELTA)?;
        let factors = svd(&(gram + delta)?)?;
        // Singular values that are rounding noise count as zero, as in PyTorch's `pinv`.
        let singular = factors.s.to_vec1::<f64>()?;
        let largest = singular.first().copied().unwrap_or_default();
        let noise = largest * singular.len() as f64 * f64::from(f32::EPSILON);
        let inverse = singular.iter().map(|value| if *value > noise { 1.0 / value } else { 0.0 });
        let inverse = Tensor::from_vec(inverse.collect::<Vec<f64>>(), (1, singular.len()), &Device::Cpu)?;
        let inverse = product(&factors.vt.t()?.broadcast_mul(&inverse)?, &factors.u.t()?, 1.0)?;
        let wide = widened(&grad.detach())?;
        let inverse = inverse.to_dtype(wide.dtype())?.to_device(grad.device())?;
        Ok(product(&wide, &inverse, 1.0 / self.scaling.powi(2))?.to_dtype(grad.dtype())?)
    }
}

impl Optimizer for LoraFa {
    fn parameters(&self) -> Vec<(String, Var)> {
        self.inner.parameters()
    }

    fn learning_rate(&self) -> f64 {
        self.inner.learning_rate()
    }

    fn step(&mut self, grads: &GradStore, factor: f64) -> Result<()> {
        let mut projected = GradStore::default();
        for (_, var) in self.inner.parameters() {
            if let Some(grad) = grads.get(&var) {
                projected.insert(&var, grad.clone());
            }
        }
        for pair in &self.pairs {
            if let Some(grad) = grads.get(&pair.b) {
                projected.insert(&pair.b, pair.project(grad)?);
            }
        }
        self.inner.step(&projected, factor)
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.inner.state()
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.inner.load_state(state)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::backprop::GradStore;
    use candle_core::{Device, Tensor, Var};

    use super::{LoraFa, Pair};
    use crate::training::{AdamW, AdamWOptions, Optimizer, ParameterGroup, UpdateRule};

    #[test]
    fn three_steps_are_those_of_peft() {
        // PEFT 0.21.2: LoraFAOptimizer over [A, B, c] with lr = 0.1, scaling 2, weight_decay = 0.05, without autocast, and
        // the gradients below.
        let cpu = &Device::Cpu;
        let a = Var::new(&[[1f32, 2., -1.], [0.5, -1., 2.]], cpu).unwrap();
        let b = Var::new(&[[0.1f32, -0.2], [0.3, 0.4], [-0.5, 0.6]], cpu).unwrap();
        let c = Var::new(&[1f32, -1.], cpu).unwrap();
        let named = vec![("b".to_owned(), b.clone()), ("c".to_owned(), c.clone())];
        let group = ParameterGroup::new("all", named, 0.1).with_weight_decay(0.05);
        let options = AdamWOptions::new().with_eps(1e-6).with_rule(UpdateRule::Transformers);
        let inner = AdamW::with_options(vec![group], options).unwrap();
        let pairs = vec![Pair { a: a.clone(), b: b.clone(), scaling: 2.0 }];
        let mut optimizer = LoraFa { pairs, inner };
        for step in 0..3 {
            let step = f64::from(step);
            let sine = |i: u32| (1.0 + 0.7 * step + f64::from(i)).sin() as f32;
            let cosine = |i: u32| (step + f64::from(i)).cos() as f32;
            let mut grads = GradStore::default();
            grads.insert(&b, Tensor::from_vec((0..6).map(sine).collect::<Vec<f32>>(), (3, 2), cpu).unwrap());
            grads.insert(&c, Tensor::from_vec((0..2).map(cosine).collect::<Vec<f32>>(), 2, cpu).unwrap());
            optimizer.step(&grads, 1.0).unwrap();
        }
        let expected_b = [-0.18852673, -0.47242054, 0.57722378, 0.68617797, -0.29070389, 0.73020685];
        let expected = [&expected_b[..], &[0.74693024, -1.04213536]].concat();
        let found = [&b, &c].map(|var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).concat();
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 2e-6, "{found} {expected}");
        }
        assert_eq!(a.to_vec2::<f32>().unwrap(), [[1., 2., -1.], [0.5, -1., 2.]]);
    }
}
