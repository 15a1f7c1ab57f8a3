//! What an injection did.

use std::fmt;

use candle_core::Var;

use crate::layer::Content;
use crate::path::ModulePath;

/// What an injection did to the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InjectionReport {
    /// The adapter's name.
    pub adapter: String,
    /// The layers that carry it, in model order.
    pub adapted: Vec<ModulePath>,
    /// The layers of which it trains a full copy.
    pub copied: Vec<ModulePath>,
    /// The layers of the base model whose bias trains along with it.
    pub biases: Vec<ModulePath>,
    /// Target names of a loaded config that match nothing; in a config of your own they are errors.
    pub unmatched_targets: Vec<String>,
    /// Whether the adapter is active: a model's first adapter is; later ones wait for `set_adapter`.
    pub active: bool,
    /// The number of elements in the adapter's tensors.
    pub elements: usize,
}

impl InjectionReport {
    pub(super) fn add_content(&mut self, path: &ModulePath, content: &Content) {
        match content {
            Content::Adapter(adapter) => {
                self.adapted.push(path.clone());
                self.elements +=
                    adapter.tensors().iter().map(|tensor| tensor.var.elem_count()).sum::<usize>();
            }
            Content::Copy(parameters) => {
                self.copied.push(path.clone());
                self.elements += parameters.iter().map(|copy| copy.var.elem_count()).sum::<usize>();
            }
        }
    }

    pub(super) fn add_bias(&mut self, path: &ModulePath, bias: &Var) {
        self.biases.push(path.clone());
        self.elements += bias.elem_count();
    }
}

impl fmt::Display for InjectionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { adapter, adapted, copied, biases, unmatched_targets, active, elements } = self;
        let state = if *active { "active" } else { "not active" };
        let (layers, elements) = (of(adapted.len(), "layer", "layers"), of(*elements, "element", "elements"));
        write!(f, "adapter `{adapter}` ({state}): {layers} adapted, {elements}")?;
        if !copied.is_empty() {
            write!(f, ", {} trained in full", of(copied.len(), "layer", "layers"))?;
        }
        if !biases.is_empty() {
            write!(f, ", {} of the base model", of(biases.len(), "bias", "biases"))?;
        }
        if !unmatched_targets.is_empty() {
            write!(f, "; targets that match nothing: {}", unmatched_targets.join(", "))?;
        }
        Ok(())
    }
}

/// A number of things.
fn of(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
