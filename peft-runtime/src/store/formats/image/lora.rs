//! Updates as an adapter of LoRA, which can hold all of them.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Result as CandleResult, Tensor};
use serde_json::{Map, Value, json};

use super::delta::{LowRank, as_number};
use super::layer::{Axis, LayerUpdate};
use super::lengths;
use super::update::at;
use super::{exact, written::Written};
use crate::error::Result;
use crate::store::formats::Base;

/// The adapter. `template` has the fields of a config that the file has.
pub(super) fn write<'l>(
    layers: BTreeMap<String, LayerUpdate>,
    template: Map<String, Value>,
    all: impl Iterator<Item = &'l str>,
    base: Option<&Base>,
) -> Result<Written> {
    let mut updates = BTreeMap::new();
    for (path, layer) in layers {
        updates.insert(path.clone(), lengths::without_inputs(&path, layer, base)?);
    }
    let has_lengths = updates.values().any(|layer| matches!(layer.lengths, Some(Axis::Outputs(_))));
    let mut tensors = BTreeMap::new();
    let mut terms = BTreeMap::new();
    for (path, layer) in &updates {
        let own = layer.delta.low_rank().map_err(at(path))?;
        if has_lengths {
            let lengths = lengths::of_outputs(path, layer, base)?;
            let lengths = lengths.reshape(lengths_shape(&layer.weight)).map_err(at(path))?;
            tensors.insert(format!("{path}.lora_magnitude_vector"), lengths);
        }
        terms.insert(path.as_str(), own);
    }
    let has_bias = terms.values().any(|terms| terms.bias.is_some());
    for ((path, own), layer) in terms.iter().zip(updates.values()) {
        add_factors(&mut tensors, path, own, &layer.weight, has_bias).map_err(at(path))?;
    }
    let stabilised = !terms.is_empty() && terms.values().all(|terms| terms.stabilised);
    let ranks = terms.iter().map(|(path, terms)| (*path, as_number(terms.rank()))).collect();
    let alpha = |terms: &LowRank| match stabilised {
        true => terms.alpha,
        false if terms.stabilised => terms.scale() * as_number(terms.rank()),
        false => terms.alpha,
    };
    let alphas = terms.iter().map(|(path, terms)| (*path, alpha(terms))).collect();
    let (rank, rank_pattern) = exact::numbers(&ranks);
    let (alpha, alpha_pattern) = exact::numbers(&alphas);
    let paths: BTreeSet<&str> = terms.keys().copied().collect();
    let mut config = template;
    config.insert("peft_type".to_owned(), json!("LORA"));
    // A config has a rank even where nothing is adapted.
    config.insert("r".to_owned(), exact::number(rank.max(1.0)));
    config.insert("lora_alpha".to_owned(), exact::number(alpha));
    config.insert("rank_pattern".to_owned(), rank_pattern);
    config.insert("alpha_pattern".to_owned(), alpha_pattern);
    config.insert("target_modules".to_owned(), exact::targets(&paths, all)?);
    config.insert("use_rslora".to_owned(), json!(stabilised));
    config.insert("use_dora".to_owned(), json!(has_lengths));
    config.insert("lora_bias".to_owned(), json!(has_bias));
    Ok(Written { config, tensors })
}

/// The shape of DoRA's lengths of a layer with a weight of this shape.
fn lengths_shape(weight: &[usize]) -> Vec<usize> {
    let outputs = weight.first().copied().unwrap_or_default();
    match weight.len() {
        2 => vec![outputs],
        dimensions => {
            let mut shape = vec![1, outputs];
            shape.resize(dimensions, 1);
            shape
        }
    }
}

/// Both factors in the shapes that they have on a layer with a weight of this shape.
fn add_factors(
    tensors: &mut BTreeMap<String, Tensor>,
    path: &str,
    terms: &LowRank,
    weight: &[usize],
    has_bias: bool,
) -> CandleResult<()> {
    let rank = terms.rank();
    let outputs = weight.first().copied().unwrap_or_default();
    let down = [&[rank], weight.get(1..).unwrap_or_default()].concat();
    let mut up = vec![outputs, rank];
    up.resize(weight.len(), 1);
    tensors.insert(format!("{path}.lora_A.weight"), terms.a.reshape(down)?);
    tensors.insert(format!("{path}.lora_B.weight"), terms.b.reshape(up)?);
    if has_bias {
        let bias = match &terms.bias {
            Some(bias) => bias.clone(),
            None => Tensor::zeros(outputs, terms.b.dtype(), terms.b.device())?,
        };
        tensors.insert(format!("{path}.lora_B.bias"), bias);
    }
    Ok(())
}
