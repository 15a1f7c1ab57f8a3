//! LoRA as PEFT's module tree prints it.

use super::Lora;
use crate::adapter::{Component, Geometry, describe_dropout};
use crate::layer::python_tuple;

pub(super) fn components(lora: &Lora) -> Vec<Component> {
    let on_embedding = lora.is_embedding();
    let down = (!on_embedding).then(|| describe_down(&lora.geometry, lora.rank));
    let up = (!on_embedding).then(|| describe_up(&lora.geometry, lora.rank, lora.b_bias.is_some()));
    let magnitude = lora.magnitude.as_ref().map(|_| describe_magnitude(&lora.geometry));
    vec![
        Component::modules("lora_dropout", Some(describe_dropout(lora.dropout))),
        Component::modules("lora_A", down),
        Component::modules("lora_B", up),
        Component::tensors("lora_embedding_A", on_embedding.then_some(&*lora.a)),
        Component::tensors("lora_embedding_B", on_embedding.then_some(&*lora.b)),
        Component::modules("lora_magnitude_vector", magnitude),
    ]
}

/// Those of a linear layer without a bias of B and without lengths.
pub(super) fn linear_components(geometry: &Geometry, rank: usize, dropout: f64) -> Vec<Component> {
    vec![
        Component::modules("lora_dropout", Some(describe_dropout(dropout))),
        Component::modules("lora_A", Some(describe_down(geometry, rank))),
        Component::modules("lora_B", Some(describe_up(geometry, rank, false))),
        Component::tensors("lora_embedding_A", None),
        Component::tensors("lora_embedding_B", None),
        Component::modules("lora_magnitude_vector", None),
    ]
}

fn describe_magnitude(geometry: &Geometry) -> String {
    match geometry {
        Geometry::Embedding { .. } => "lora.dora.lora.dora.DoraEmbeddingLayer()".to_owned(),
        Geometry::Conv { kernel, .. } => format!("lora.dora.lora.dora.DoraConv{}dLayer()", kernel.len()),
        _ => "lora.dora.DoraLinearLayer()".to_owned(),
    }
}

fn describe_down(geometry: &Geometry, rank: usize) -> String {
    match geometry {
        Geometry::Conv { in_channels, kernel, settings, .. } => {
            let each = |value: usize| python_tuple(&vec![value; kernel.len()]);
            let padding = match settings.padding {
                0 => String::new(),
                padding => format!(", padding={}", each(padding)),
            };
            format!(
                "Conv{}d({in_channels}, {rank}, kernel_size={}, stride={}{padding}, bias=False)",
                kernel.len(),
                python_tuple(kernel),
                each(settings.stride)
            )
        }
        other => format!("Linear(in_features={}, out_features={rank}, bias=False)", other.in_features()),
    }
}

fn describe_up(geometry: &Geometry, rank: usize, has_bias: bool) -> String {
    let bias = if has_bias { "True" } else { "False" };
    match geometry {
        Geometry::Conv { out_channels, kernel, settings, .. } => {
            let ones = python_tuple(&vec![1; kernel.len()]);
            let groups = match settings.groups {
                1 => String::new(),
                groups => format!(", groups={groups}"),
            };
            let bias = if has_bias { "" } else { ", bias=False" };
            format!(
                "Conv{}d({rank}, {out_channels}, kernel_size={ones}, stride={ones}{groups}{bias})",
                kernel.len()
            )
        }
        other => format!("Linear(in_features={rank}, out_features={}, bias={bias})", other.out_features()),
    }
}
