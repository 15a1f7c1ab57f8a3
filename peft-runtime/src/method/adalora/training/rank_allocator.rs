//! AdaLoRA's rank allocation: which singular values keep their place as the budget falls.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result as CandleResult, Tensor};

use super::importance::Layer;
use super::orthogonality::{column_distance, row_distance};
use super::schedule::{BudgetSchedule, Phase};
use crate::error::{ConfigError, Error, Result, TrainingError};
use crate::manage::check_known;
use crate::method::{AdaLora, AdaLoraConfig};
use crate::module::{Injectable, leaves};
use crate::path::ModulePath;
use crate::training::RankAllocation;

/// Shares out ranks between the layers of an AdaLoRA adapter while it trains: <https://arxiv.org/abs/2303.10512>.
///
/// Call [`update_and_allocate`](Self::update_and_allocate) once after each step of the optimiser, and add
/// [`orthogonality_loss`](Self::orthogonality_loss) to the loss.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Linear, Module};
/// use peft_runtime::prelude::*;
/// use peft_runtime::train::RankAllocator;
///
/// #[derive(Injectable)]
/// struct Model {
///     linear: Adapted<Linear>,
/// }
///
/// let weight = Tensor::randn(0f32, 1., (6, 5), &Device::Cpu)?;
/// let mut model = Model { linear: Linear::new(weight, None).into() };
/// let config = AdaLoraConfig::new(4, 2, 10).with_targets(targets!(Model; "linear"));
/// model.inject_adapter(&config, "default")?;
/// let mut allocator = RankAllocator::new(&model, "default")?;
/// let x = Tensor::ones((3, 5), DType::F32, &Device::Cpu)?;
/// for step in 0..10 {
///     let loss = (model.linear.forward(&x)?.sqr()?.mean_all()? + allocator.orthogonality_loss()?)?;
///     let grads = loss.backward()?;
///     // The optimiser's step comes here.
///     allocator.update_and_allocate(step, &grads)?;
/// }
/// assert!(allocator.ranks().iter().all(|(_, rank)| *rank <= 2));
/// # Ok::<(), peft_runtime::Error>(())
/// ```
#[derive(Debug)]
pub struct RankAllocator {
    adapter: String,
    config: AdaLoraConfig,
    schedule: BudgetSchedule,
    pub(super) layers: Vec<Layer>,
    pub(super) budget: usize,
    pub(super) threshold: Option<f64>,
}

/// What one call of [`RankAllocator::update_and_allocate`] did.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Allocation {
    /// How many ranks all layers together may have at this step.
    pub budget: usize,
    /// The importance that a rank had to be above, if ranks were cut at this step.
    pub threshold: Option<f64>,
}

impl RankAllocator {
    /// An allocator for the AdaLoRA adapter called `adapter`.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`]; [`Error::Unsupported`] if it is not an AdaLoRA adapter; [`ConfigError::Invalid`] if the
    /// target rank is over the initial one, or a decay is not between 0 and 1.
    pub fn new<M: Injectable + ?Sized>(model: &M, adapter: &str) -> Result<Self> {
        let leaves = leaves(model);
        check_known(&leaves, &[adapter])?;
        let mut config = None;
        let mut layers = Vec::new();
        for (path, leaf) in &leaves {
            let Some(slot) = leaf.stack().and_then(|stack| stack.slot(adapter)) else { continue };
            config = config.or_else(|| slot.method.downcast_ref::<AdaLoraConfig>().cloned());
            if let Some(state) = slot.adapter().filter(|state| state.downcast_ref::<AdaLora>().is_some()) {
                let (path, adapter) = (path.clone(), Arc::clone(state));
                layers.push(Layer { path, adapter, importance: Default::default() });
            }
        }
        let Some(config) = config else {
            return Err(Error::Unsupported {
                operation: "allocate ranks of",
                adapter: adapter.to_owned(),
                reason: "it is not an AdaLoRA adapter".to_owned(),
            });
        };
        check(&config)?;
        let schedule = BudgetSchedule::new(&config, layers.len());
        let (adapter, budget) = (adapter.to_owned(), schedule.first);
        Ok(Self { adapter, config, schedule, layers, budget, threshold: None })
    }

    /// How many ranks all layers together may have after the last call.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// The importance that a rank had to be above at the last cut.
    pub fn threshold(&self) -> Option<f64> {
        self.threshold
    }

    /// The number of ranks that each layer has kept.
    pub fn ranks(&self) -> Vec<(ModulePath, usize)> {
        let kept = |layer: &Layer| layer.state().map_or(0, AdaLora::kept_rank);
        self.layers.iter().map(|layer| (layer.path.clone(), kept(layer))).collect()
    }

    /// The budget at `step`: the full one, then along a cubic curve down to the target.
    pub fn budget_at(&self, step: usize) -> usize {
        self.schedule.budget_at(step)
    }

    /// The weighted mean over all factors of ‖A·Aᵀ − I‖_F and ‖Bᵀ·B − I‖_F: a term of the loss.
    ///
    /// # Errors
    /// If a device operation fails.
    pub fn orthogonality_loss(&self) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for layer in
            self.layers.iter().filter_map(Layer::state).filter(|layer| !layer.e().dims().contains(&0))
        {
            let distance = (row_distance(layer.a())? + column_distance(layer.b())?)?;
            sum = Some(match sum {
                Some(sum) => (sum + distance)?,
                None => distance,
            });
        }
        #[expect(clippy::cast_precision_loss, reason = "the number of layers is far below 2^53")]
        let weight = self.config.orthogonality_weight() / (2 * self.layers.len()).max(1) as f64;
        match sum {
            Some(sum) => Ok((sum * weight)?),
            None => Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?),
        }
    }

    /// Takes in the gradients of one step and, where the schedule says so, cuts the least important ranks.
    ///
    /// Steps count from 0. It comes after the optimiser's step, with the gradients of that step.
    ///
    /// # Errors
    /// [`TrainingError::NoGradient`] if a tensor of the adapter has no gradient; nothing is changed then.
    pub fn update_and_allocate(&mut self, step: usize, grads: &GradStore) -> Result<Allocation> {
        let phase = self.schedule.phase(step);
        if matches!(phase, Phase::Watch | Phase::Cut) {
            self.update(grads)?;
        }
        self.budget = self.budget_at(step);
        let threshold = match phase {
            Phase::Watch => None,
            Phase::Cut => self.cut()?,
            Phase::LastCut => {
                let threshold = self.cut()?;
                self.layers.iter_mut().for_each(|layer| layer.importance = Default::default());
                threshold
            }
            Phase::Final => {
                self.layers.iter().filter_map(Layer::state).try_for_each(AdaLora::clear_cut_ranks)?;
                None
            }
        };
        self.threshold = threshold.or(self.threshold);
        Ok(Allocation { budget: self.budget, threshold })
    }

    fn update(&mut self, grads: &GradStore) -> Result<()> {
        for layer in &self.layers {
            for (name, var) in layer.tensors() {
                if grads.get(var).is_none() {
                    let parameter = layer.path.parameter(name);
                    return Err(Error::Training(TrainingError::NoGradient {
                        adapter: self.adapter.clone(),
                        parameter,
                    }));
                }
            }
        }
        let betas = self.config.betas();
        for layer in &mut self.layers {
            let tensors = layer.tensors().map(|(_, var)| var.clone()).collect::<Vec<_>>();
            for (var, importance) in tensors.iter().zip(&mut layer.importance) {
                if let Some(grad) = grads.get(var) {
                    importance.update(var, grad, betas)?;
                }
            }
        }
        Ok(())
    }

    /// Cuts to the budget; returns the threshold, if there was anything to cut.
    fn cut(&self) -> Result<Option<f64>> {
        let scores = self.layers.iter().map(Layer::scores).collect::<CandleResult<Vec<_>>>()?;
        let mut sorted: Vec<f64> = scores.iter().flatten().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let cuts = self.schedule.first.saturating_sub(self.budget).min(sorted.len());
        // Scores at the threshold are cut as well.
        let threshold = cuts.checked_sub(1).and_then(|last| sorted.get(last).copied());
        for (layer, scores) in self.layers.iter().zip(&scores) {
            if let Some(state) = layer.state().filter(|_| !scores.is_empty()) {
                let keeps = |score: &f64| threshold.is_none_or(|threshold| *score > threshold);
                state.keep_ranks(scores.iter().map(keeps).collect());
                state.clear_cut_ranks()?;
            }
        }
        Ok(threshold)
    }
}

impl RankAllocation for RankAllocator {
    fn budget(&self) -> usize {
        self.budget()
    }

    fn threshold(&self) -> Option<f64> {
        self.threshold()
    }

    fn ranks(&self) -> Vec<(ModulePath, usize)> {
        self.ranks()
    }

    fn loss_term(&self) -> Result<Tensor> {
        self.orthogonality_loss()
    }

    fn allocate(&mut self, step: usize, grads: &GradStore) -> Result<()> {
        self.update_and_allocate(step, grads).map(drop)
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.write_state()
    }

    fn check_state(&self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.read_state(state).map(drop)
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let state = self.read_state(state)?;
        self.restore(state);
        Ok(())
    }
}

/// The values that only training needs to be sound.
fn check(config: &AdaLoraConfig) -> Result<()> {
    if config.target_rank() > config.init_rank() {
        let reason = format!(
            "the target rank {} is over the initial rank {}, and ranks only fall",
            config.target_rank(),
            config.init_rank()
        );
        return Err(Error::Config(ConfigError::Invalid { field: "target_r", reason }));
    }
    let (beta1, beta2) = config.betas();
    for (field, beta) in [("beta1", beta1), ("beta2", beta2)] {
        if !(beta > 0.0 && beta < 1.0) {
            return Err(Error::Config(ConfigError::Invalid {
                field,
                reason: format!("the decay is {beta}; it must be between 0 and 1"),
            }));
        }
    }
    Ok(())
}
