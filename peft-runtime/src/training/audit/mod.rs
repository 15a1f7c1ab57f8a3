//! The gradient audit: which tensors that should train got no gradient, and why.

mod report;

use std::collections::BTreeSet;

use candle_core::backprop::GradStore;
use candle_core::{TensorId, Var};

use crate::config::Bias;
use crate::error::{Error, Result, TrainingError};
use crate::layer::{AdapterStack, Called, Layer};
use crate::manage::{bias_variable, slot_variables};
use crate::module::{Injectable, leaves};
use crate::path::ModulePath;

/// What a backward pass did for the trainable tensors of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    trainable: usize,
    missing: Vec<MissingGradient>,
    /// Norms of candle-nn whose own forward pass has no gradient.
    plain_norms: Vec<(ModulePath, &'static str)>,
    /// How many gradients belong to other tensors, and their size.
    stray: usize,
    stray_bytes: usize,
    /// Adapters that are on the model but do not train.
    frozen_adapters: Vec<String>,
}

/// A tensor that trains and got no gradient.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MissingGradient {
    /// The tensor's name, as [`trainable_parameters`](crate::PeftModel::trainable_parameters) gives it.
    pub parameter: String,
    /// The layer it belongs to.
    pub module: ModulePath,
    /// The adapter it belongs to; `None` for a bias of the base model.
    pub adapter: Option<String>,
    /// Why it got none, as far as that is known.
    pub cause: MissingCause,
}

/// Why a tensor got no gradient.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MissingCause {
    /// The adapter is not among the active ones.
    Inactive,
    /// The adapters of the model are turned off.
    Disabled,
    /// An adapter is merged into the layer's weight, so that only the weight takes effect.
    Merged,
    /// The layer has not run since it got the adapter.
    NotCalled,
    /// The layer has run only under [`no_grad`](crate::no_grad).
    OutsideGraph,
    /// The layer ran as part of a graph, but between it and the loss the graph is cut.
    Cut {
        /// The next layer in model order that did get gradients: the cut lies before it or next to it.
        next: Option<ModulePath>,
    },
}

/// Checks which trainable tensors of the model have a gradient.
///
/// It walks through the model and computes nothing, so it can run in every step of a training loop. What it finds most
/// often is a candle-nn op that computes without a graph, so that whatever comes before it silently does not train:
///
/// ```
/// use candle_core::{D, Device, Tensor};
/// use candle_nn::{Linear, Module, ops};
/// use peft_runtime::prelude::*;
/// use peft_runtime::train::audit;
///
/// type Softmax = fn(&Tensor) -> candle_core::Result<Tensor>;
///
/// #[derive(Injectable)]
/// struct Attention {
///     q_proj: Adapted<Linear>,
///     k_proj: Adapted<Linear>,
///     v_proj: Adapted<Linear>,
/// }
///
/// impl Attention {
///     fn forward(&self, x: &Tensor, softmax: Softmax) -> candle_core::Result<Tensor> {
///         let scores = self.q_proj.forward(x)?.matmul(&self.k_proj.forward(x)?.t()?)?;
///         softmax(&scores)?.matmul(&self.v_proj.forward(x)?)
///     }
/// }
///
/// let weight = || Tensor::randn(0f32, 1., (4, 4), &Device::Cpu);
/// let linear = || Ok::<_, candle_core::Error>(Adapted::new(Linear::new(weight()?, None)));
/// let mut model = Attention { q_proj: linear()?, k_proj: linear()?, v_proj: linear()? };
/// let config = LoraConfig::new(2, 4.0).with_targets(targets!(Attention; "q_proj", "k_proj", "v_proj"));
/// model.inject_adapter(&config, "default")?;
/// let x = Tensor::randn(0f32, 1., (3, 4), &Device::Cpu)?;
///
/// // candle's fused softmax cuts the graph: the queries and keys do not train.
/// let grads = model.forward(&x, ops::softmax_last_dim)?.sum_all()?.backward()?;
/// let found = audit(&model, &grads);
/// let layers: Vec<_> = found.missing().iter().map(|missing| missing.module.as_str()).collect();
/// assert_eq!(layers, ["q_proj", "q_proj", "k_proj", "k_proj"]);
/// assert!(found.to_string().contains("softmax_last_dim"));
/// assert!(found.ensure_complete().is_err());
///
/// // The one that is made of differentiable ops does not.
/// let grads = model.forward(&x, |scores| ops::softmax(scores, D::Minus1))?.sum_all()?.backward()?;
/// audit(&model, &grads).ensure_complete()?;
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub fn audit<M: Injectable + ?Sized>(model: &M, grads: &GradStore) -> Audit {
    let leaves = leaves(model);
    let candidates = candidates(&leaves);
    let has_gradient =
        |candidate: &Candidate| candidate.var.elem_count() == 0 || grads.get(&candidate.var).is_some();
    // If no adapter that trains is active, the tensors of all of them are missing.
    let any_active = candidates.iter().any(|candidate| candidate.active);
    let expected: Vec<&Candidate> =
        candidates.iter().filter(|candidate| candidate.active || !any_active).collect();
    let missing = expected.iter().enumerate().filter(|(_, candidate)| !has_gradient(candidate));
    let missing = missing.map(|(place, candidate)| {
        let next =
            expected[place..].iter().find(|next| has_gradient(next) && next.module != candidate.module);
        candidate.missing(next.map(|next| next.module.clone()))
    });
    let (stray, stray_bytes) = stray(grads, &candidates);
    Audit {
        trainable: expected.len(),
        missing: missing.collect(),
        plain_norms: plain_norms(&leaves),
        stray,
        stray_bytes,
        frozen_adapters: frozen_adapters(&leaves),
    }
}

/// A tensor that may train.
struct Candidate {
    parameter: String,
    var: Var,
    module: ModulePath,
    adapter: Option<String>,
    active: bool,
    /// Why it has no gradient if it has none; `None` stands for a cut.
    cause: Option<MissingCause>,
}

impl Candidate {
    fn missing(&self, next: Option<ModulePath>) -> MissingGradient {
        MissingGradient {
            parameter: self.parameter.clone(),
            module: self.module.clone(),
            adapter: self.adapter.clone(),
            cause: self.cause.clone().unwrap_or(MissingCause::Cut { next }),
        }
    }
}

/// Every tensor that trains, or would if its adapter were active, once and in model order.
fn candidates(leaves: &[(ModulePath, &dyn Layer)]) -> Vec<Candidate> {
    let stacks = || leaves.iter().filter_map(|(_, leaf)| leaf.stack());
    let biases_train = stacks()
        .flat_map(AdapterStack::active_slots)
        .any(|slot| slot.method.bias() != Bias::None && slot.trainable);
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut known: BTreeSet<String> = BTreeSet::new();
    for (path, leaf) in leaves {
        let bias = if biases_train { bias_variable(path, *leaf) } else { None };
        candidates.extend(bias.map(|(parameter, var)| Candidate {
            parameter,
            var,
            module: path.clone(),
            adapter: None,
            active: true,
            cause:
                leaf.stack().filter(|stack| stack.called() == Called::Never).map(|_| MissingCause::NotCalled),
        }));
        let Some(stack) = leaf.stack() else { continue };
        for slot in stack.slots().iter().filter(|slot| slot.trainable) {
            let active = stack.active().contains(&slot.name);
            let cause = cause(stack, active);
            let variables = slot_variables(path, slot).into_iter();
            candidates.extend(variables.filter(|(name, _)| known.insert(name.clone())).map(
                |(parameter, var)| Candidate {
                    parameter,
                    var,
                    module: path.clone(),
                    adapter: Some(slot.name.clone()),
                    active,
                    cause: cause.clone(),
                },
            ));
        }
    }
    candidates
}

/// The cause as the state of a layer shows it; `None` if the layer ran as part of a graph.
fn cause(stack: &AdapterStack, active: bool) -> Option<MissingCause> {
    if !stack.enabled() {
        return Some(MissingCause::Disabled);
    }
    if !active {
        return Some(MissingCause::Inactive);
    }
    if !stack.merged().is_empty() {
        return Some(MissingCause::Merged);
    }
    match stack.called() {
        Called::Never => Some(MissingCause::NotCalled),
        Called::OutsideGraph => Some(MissingCause::OutsideGraph),
        Called::InGraph => None,
    }
}

/// Norms that are not `Adapted` layers: candle-nn's own forward passes have no gradient on contiguous inputs.
fn plain_norms(leaves: &[(ModulePath, &dyn Layer)]) -> Vec<(ModulePath, &'static str)> {
    let plain = leaves.iter().filter(|(_, layer)| !layer.can_carry_adapters());
    let named = plain.map(|(path, layer)| (path.clone(), layer.kind().name));
    named.filter(|(_, name)| ["LayerNorm", "RmsNorm"].contains(name)).collect()
}

/// Adapters that were loaded for inference, or frozen.
fn frozen_adapters(leaves: &[(ModulePath, &dyn Layer)]) -> Vec<String> {
    let slots = leaves.iter().filter_map(|(_, leaf)| leaf.stack()).flat_map(AdapterStack::slots);
    let names: BTreeSet<&String> = slots.filter(|slot| !slot.trainable).map(|slot| &slot.name).collect();
    names.into_iter().cloned().collect()
}

/// How many gradients belong to none of these tensors, and how many bytes they hold.
fn stray(grads: &GradStore, candidates: &[Candidate]) -> (usize, usize) {
    let trains = |id: &TensorId| candidates.iter().any(|candidate| candidate.var.id() == *id);
    // The order in which they are counted does not matter.
    let stray = grads.get_ids().filter(|id| !trains(id)).filter_map(|id| grads.get_id(*id));
    stray.fold((0, 0), |(count, bytes), grad| {
        (count + 1, bytes + grad.elem_count() * grad.dtype().size_in_bytes())
    })
}

impl Audit {
    /// How many tensors should have a gradient.
    pub fn trainable(&self) -> usize {
        self.trainable
    }

    /// How many of them have one.
    pub fn reached(&self) -> usize {
        self.trainable - self.missing.len()
    }

    /// Those that have none, in model order.
    pub fn missing(&self) -> &[MissingGradient] {
        &self.missing
    }

    /// How many gradients belong to other tensors. candle's own ops form them for frozen operands too, which costs time and
    /// memory for nothing.
    pub fn stray(&self) -> usize {
        self.stray
    }

    /// Whether at least one tensor trains, and every one that trains has a gradient.
    pub fn is_complete(&self) -> bool {
        self.trainable > 0 && self.missing.is_empty()
    }

    /// An error unless every tensor that trains has a gradient.
    ///
    /// # Errors
    /// [`TrainingError::MissingGradients`] with this report.
    pub fn ensure_complete(&self) -> Result<()> {
        if self.is_complete() { Ok(()) } else { Err(self.to_error()) }
    }

    /// An error unless some tensor that trains has a gradient.
    ///
    /// # Errors
    /// [`TrainingError::MissingGradients`] with this report.
    pub fn ensure_any(&self) -> Result<()> {
        if self.reached() > 0 { Ok(()) } else { Err(self.to_error()) }
    }

    fn to_error(&self) -> Error {
        let missing = self.missing.iter().map(|missing| missing.parameter.clone()).collect();
        Error::Training(TrainingError::MissingGradients { missing, report: self.to_string() })
    }
}
