//! What the module tree shows of an adapter.

use candle_core::{DType, Tensor};

/// One container of PEFT's module tree, such as `lora_A`, with one adapter's entry in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// The container's name.
    pub name: &'static str,
    /// What it holds.
    pub holds: Holds,
    /// The adapter's entry, if it has one.
    pub entry: Option<String>,
}

impl Component {
    /// A container of modules.
    pub fn modules(name: &'static str, entry: Option<String>) -> Self {
        Self { name, holds: Holds::Modules, entry }
    }

    /// A container of bare tensors.
    pub fn tensors(name: &'static str, entry: Option<&Tensor>) -> Self {
        Self {
            name,
            holds: Holds::Parameters,
            entry: entry.map(|tensor| describe_tensor("Parameter", tensor)),
        }
    }

    /// A container of tensors that do not train.
    pub(crate) fn buffers(name: &'static str, entry: &Tensor) -> Self {
        Self { name, holds: Holds::Buffers, entry: Some(describe_tensor("Buffer", entry)) }
    }
}

/// What a container of PEFT's module tree holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holds {
    /// Modules: a `ModuleDict`.
    Modules,
    /// Tensors that train: a `ParameterDict`.
    Parameters,
    /// Tensors that do not: a `BufferDict`.
    Buffers,
}

/// A tensor as PyTorch prints it in a container.
fn describe_tensor(what: &str, tensor: &Tensor) -> String {
    let dims: Vec<String> = tensor.dims().iter().map(ToString::to_string).collect();
    let kind = match tensor.dtype() {
        DType::F64 => "Double",
        DType::F16 => "Half",
        DType::BF16 => "BFloat16",
        _ => "Float",
    };
    format!("{what} containing: [torch.{kind}Tensor of size {}]", dims.join("x"))
}

/// Dropout as PyTorch prints it; without dropout, the module that takes its place.
pub(crate) fn describe_dropout(probability: f64) -> String {
    if probability > 0.0 {
        format!("Dropout(p={probability}, inplace=False)")
    } else {
        "Identity()".to_owned()
    }
}
