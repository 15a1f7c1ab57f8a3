//! Gradients and training steps of a case.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use peft_runtime::prelude::*;
use peft_runtime::train::{AdamW, Optimizer as _, ParameterGroup, RankAllocator};

use super::case::Optimizer;
use super::compare::Subject;
use super::models::CaseModel;
use super::session::Session;
use super::steps::describe_error;

/// Steps of an optimiser.
#[derive(Clone, Copy)]
pub(super) struct Descent {
    pub(super) optimizer: Optimizer,
    pub(super) lr: f64,
    pub(super) weight_decay: f64,
    pub(super) steps: usize,
}

impl<M: CaseModel> Session<'_, M> {
    /// The output in f32, in which losses are computed.
    fn wide_output(&self) -> candle_core::Result<Tensor> {
        self.forward(&self.model)?.to_dtype(DType::F32)
    }

    /// The one active adapter.
    fn active(&self) -> Result<String, String> {
        match self.model.active_adapters().as_slice() {
            [adapter] => Ok(adapter.clone()),
            other => Err(format!("one adapter should be active, and there are {}", other.len())),
        }
    }

    /// The gradients of `sum(output · probe)` under the keys of the state dict.
    pub(super) fn grads(&mut self, subject: Subject, expect: &str) -> Result<(), String> {
        let adapter = self.active()?;
        let probe = self.case.input("probe")?;
        let compute = || (self.wide_output()? * probe)?.sum_all()?.backward();
        let grads = compute().map_err(|error| error.to_string())?;
        let mut found = BTreeMap::new();
        for (name, var) in self.model.trainable_parameters() {
            let grad = match grads.get(&var) {
                Some(grad) => grad.clone(),
                None if var.elem_count() == 0 => var.as_detached_tensor(),
                None => return Err(format!("`{name}` has no gradient")),
            };
            found.insert(file_key(&name, &adapter), grad);
        }
        let found = self.with_second_keys(&adapter, found)?;
        self.compare_all(subject, expect, &found)
    }

    /// What trains, also under the second keys that PEFT has for the biases of copied layers where biases train.
    fn with_second_keys(
        &self,
        adapter: &str,
        mut found: BTreeMap<String, Tensor>,
    ) -> Result<BTreeMap<String, Tensor>, String> {
        for key in describe_error(self.model.adapter_state_dict(adapter))?.into_keys() {
            let Some((module, rest)) = key.split_once(".modules_to_save.") else { continue };
            // In a module that is copied, the adapter's name comes first.
            let layer = rest.split_once('.').map_or(rest, |(_, layer)| layer);
            if let Some(tensor) = found.get(&format!("{module}.{layer}")).cloned() {
                found.insert(key, tensor);
            }
        }
        Ok(found)
    }

    /// Steps of the optimiser on `mean((output − target)²)`; compares what trains and the losses after the last.
    pub(super) fn train(&mut self, subject: Subject, descent: Descent, expect: &str) -> Result<(), String> {
        let adapter = self.active()?;
        let losses = describe_error(self.descend(&adapter, descent))?;
        let losses = Tensor::new(losses, &candle_core::Device::Cpu).map_err(|error| error.to_string())?;
        // What trains and nothing else that a file holds; AdaLoRA's tensors at full rank.
        let mut found = self.with_second_keys(&adapter, self.parameters(&adapter))?;
        let config = describe_error(self.model.adapter_config(&adapter))?;
        if config.downcast_ref::<LoraConfig>().is_some_and(LoraConfig::weight_tying) {
            // What two layers share trains under both names.
            for (key, tensor) in describe_error(self.model.adapter_state_dict(&adapter))? {
                if !key.ends_with(".base_layer.weight") {
                    found.entry(key).or_insert(tensor);
                }
            }
        }
        found.insert("loss".to_owned(), losses);
        self.compare_all(subject, expect, &found)
    }

    /// The values of everything that trains, under the keys of the state dict.
    fn parameters(&self, adapter: &str) -> BTreeMap<String, Tensor> {
        let parameters = self.model.trainable_parameters().into_iter();
        parameters.map(|(name, var)| (file_key(&name, adapter), var.as_detached_tensor())).collect()
    }

    /// Takes the steps without comparing anything, and returns the loss before each.
    pub(super) fn descend(&mut self, adapter: &str, descent: Descent) -> peft_runtime::Result<Vec<f32>> {
        let Descent { optimizer, lr, weight_decay, steps } = descent;
        let target = self.case.input("target").map_err(candle_core::Error::msg)?;
        let mut allocator = match self.model.adapter_config(adapter)?.downcast_ref::<AdaLoraConfig>() {
            Some(_) => Some(RankAllocator::new(&self.model, adapter)?),
            None => None,
        };
        let parameters = self.model.trainable_parameters();
        let vars: Vec<Var> = parameters.iter().map(|(_, var)| var.clone()).collect();
        let group = ParameterGroup::new("all", parameters, lr).with_weight_decay(weight_decay);
        let mut adamw = AdamW::new(vec![group])?;
        let mut losses = Vec::with_capacity(steps);
        for step in 0..steps {
            let mut loss = (self.wide_output()? - target)?.sqr()?.mean_all()?;
            if let Some(allocator) = &allocator {
                loss = (loss + allocator.orthogonality_loss()?)?;
            }
            losses.push(loss.to_scalar::<f32>()?);
            let grads = loss.backward()?;
            match optimizer {
                Optimizer::Sgd => sgd_step(&vars, &grads, lr, weight_decay)?,
                Optimizer::Adamw => adamw.step(&grads, 1.0)?,
            }
            if let Some(allocator) = &mut allocator {
                allocator.update_and_allocate(step, &grads)?;
            }
        }
        Ok(losses)
    }
}

/// torch's SGD: the decay is part of the gradient. What is held in half precision is rounded once.
fn sgd_step(vars: &[Var], grads: &GradStore, lr: f64, weight_decay: f64) -> candle_core::Result<()> {
    for var in vars {
        if let Some(grad) = grads.get(var) {
            let (grad, value) = (grad.to_dtype(DType::F32)?, var.as_detached_tensor().to_dtype(DType::F32)?);
            let step = ((grad + (&value * weight_decay)?)? * lr)?;
            var.set(&(value - step)?.to_dtype(var.dtype())?)?;
        }
    }
    Ok(())
}

/// The key a state dict has for a parameter that trains under `name`.
fn file_key(name: &str, adapter: &str) -> String {
    let without =
        name.replace(&format!(".modules_to_save.{adapter}."), ".").replace(&format!(".{adapter}."), ".");
    let without = without.strip_suffix(&format!(".{adapter}")).unwrap_or(&without).to_owned();
    format!("base_model.model.{without}")
}
