//! What attributes declare about a model's adapters.

use crate::config::Bias;
use crate::select::TargetModules;

/// The declarations of one type, as `const` data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Declared {
    /// The names in `#[peft(target = "…")]`.
    pub targets: &'static [&'static str],
    /// The names in `#[peft(feedforward = "…")]`.
    pub feedforward: &'static [&'static str],
    /// The values in `#[peft(lora(…))]`.
    pub lora: Option<DeclaredLora>,
    /// The name in `#[peft(input_embedding = "…")]`.
    pub input_embedding: Option<&'static str>,
    /// The name in `#[peft(output_embedding = "…")]`.
    pub output_embedding: Option<&'static str>,
}

/// The values of `#[peft(lora(…))]`, checked when the derive ran.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeclaredLora {
    /// The rank.
    pub rank: usize,
    /// Alpha.
    pub alpha: f64,
    /// The probability of dropout.
    pub dropout: f64,
    /// Whether the scaling is rank-stabilised.
    pub rslora: bool,
    /// Which biases of the base model train.
    pub bias: Bias,
}

impl Declared {
    /// No declarations.
    pub const NOTHING: Self =
        Self { targets: &[], feedforward: &[], lora: None, input_embedding: None, output_embedding: None };

    /// The declared targets, if there are any.
    pub fn target_modules(&self) -> Option<TargetModules> {
        (!self.targets.is_empty()).then(|| TargetModules::from_globs(self.targets))
    }

    /// The declared targets and those of them whose input is scaled, if targets are declared.
    pub(crate) fn target_and_feedforward_modules(&self) -> Option<(TargetModules, TargetModules)> {
        Some((self.target_modules()?, TargetModules::from_globs(self.feedforward)))
    }
}
