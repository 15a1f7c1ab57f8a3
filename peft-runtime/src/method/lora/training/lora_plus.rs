//! LoRA+: the factor B has a higher learning rate than A. <https://arxiv.org/abs/2402.12354>

use crate::manage::trainable_parameters;
use crate::module::{Injectable, leaves};
use crate::training::ParameterGroup;

/// How [`lora_plus_groups`] sets the learning rates, as PEFT's `create_loraplus_optimizer` does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraPlus {
    ratio: f64,
    embedding_learning_rate: f64,
    weight_decay: f64,
}

impl LoraPlus {
    /// B has `ratio` times the learning rate of A; the authors suggest 16. There is no weight decay.
    pub fn new(ratio: f64) -> Self {
        Self { ratio, embedding_learning_rate: 1e-6, weight_decay: 0.0 }
    }

    /// The learning rate of adapters on embeddings, which is not multiplied by anything; 1e-6 by default.
    #[must_use]
    pub fn with_embedding_learning_rate(mut self, learning_rate: f64) -> Self {
        self.embedding_learning_rate = learning_rate;
        self
    }

    /// The weight decay of everything but biases and layer norms.
    #[must_use]
    pub fn with_weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = weight_decay;
        self
    }
}

/// Everything in a model that trains, in up to four groups: `A` with the learning rate as it is; `embedding`; `B`,
/// which also contains all vectors, with `ratio` times the learning rate; `B, no decay` for the biases and layer norms
/// among them.
///
/// Groups that would be empty are left out.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_nn::Linear;
/// use peft_runtime::prelude::*;
/// use peft_runtime::train::{AdamW, LoraPlus, lora_plus_groups};
///
/// #[derive(Injectable)]
/// struct Model {
///     linear: Adapted<Linear>,
/// }
///
/// let weight = Tensor::randn(0f32, 1., (6, 5), &Device::Cpu)?;
/// let mut model = Model { linear: Linear::new(weight, None).into() };
/// model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(targets!(Model; "linear")), "default")?;
/// let groups = lora_plus_groups(&model, 1e-4, LoraPlus::new(16.0));
/// let rates: Vec<_> = groups.iter().map(|group| (group.name(), group.learning_rate())).collect();
/// assert_eq!(rates, [("A", 1e-4), ("B", 16e-4)]);
/// let optimizer = AdamW::new(groups)?;
/// # let _ = optimizer;
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub fn lora_plus_groups<M: Injectable + ?Sized>(
    model: &M,
    learning_rate: f64,
    options: LoraPlus,
) -> Vec<ParameterGroup> {
    let norms: Vec<String> = leaves(model)
        .into_iter()
        .filter(|(_, leaf)| leaf.kind().name == "LayerNorm")
        .map(|(path, _)| format!("{path}."))
        .collect();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let (mut embedding, mut without_decay) = (Vec::new(), Vec::new());
    for (name, var) in trainable_parameters(model) {
        let decays = !name.contains("bias") && !norms.iter().any(|norm| name.starts_with(norm.as_str()));
        let group = if name.contains("lora_embedding_") {
            &mut embedding
        } else if !(name.contains("lora_B") || var.rank() == 1) {
            &mut a
        } else if decays {
            &mut b
        } else {
            &mut without_decay
        };
        group.push((name, var));
    }
    let faster = learning_rate * options.ratio;
    let groups = [
        ParameterGroup::new("A", a, learning_rate).with_weight_decay(options.weight_decay),
        ParameterGroup::new("embedding", embedding, options.embedding_learning_rate)
            .with_weight_decay(options.weight_decay),
        ParameterGroup::new("B", b, faster).with_weight_decay(options.weight_decay),
        ParameterGroup::new("B, no decay", without_decay, faster).with_weight_decay(0.0),
    ];
    groups.into_iter().filter(|group| !group.parameters().is_empty()).collect()
}
