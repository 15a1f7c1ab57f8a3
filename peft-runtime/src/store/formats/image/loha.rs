//! Updates as an adapter of LoHa, where all of them are such products.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, json};

use super::delta::{Delta, Hadamard, as_number};
use super::exact;
use super::layer::LayerUpdate;
use super::written::Written;
use crate::error::Result;

/// The adapter, unless PEFT's LoHa cannot hold one of the updates.
pub(super) fn write<'l>(
    layers: &BTreeMap<String, LayerUpdate>,
    all: impl Iterator<Item = &'l str>,
) -> Result<Option<Written>> {
    if layers.is_empty() {
        return Ok(None);
    }
    let mut products: BTreeMap<&str, &Hadamard> = BTreeMap::new();
    // Whether layers with a window have cores: PEFT has one setting for all of them.
    let mut cores: Option<bool> = None;
    for (path, layer) in layers {
        let Delta::Hadamard(product) = &layer.delta else { return Ok(None) };
        if layer.lengths.is_some() {
            return Ok(None);
        }
        let has_window = layer.weight.iter().skip(2).any(|size| *size != 1);
        let fits = match &product.cores {
            Some([core, _]) => {
                has_window && core.dims().get(2..) == layer.weight.get(2..) && layer.weight.len() == 4
            }
            None => true,
        };
        if !fits
            || has_window
                && cores
                    .replace(product.cores.is_some())
                    .is_some_and(|cores| cores != product.cores.is_some())
        {
            return Ok(None);
        }
        products.insert(path, product);
    }
    let mut tensors = BTreeMap::new();
    for (path, product) in &products {
        for (name, factor) in
            ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"].iter().zip(&product.factors)
        {
            tensors.insert(format!("{path}.{name}"), factor.clone());
        }
        for (name, core) in ["hada_t1", "hada_t2"].iter().zip(product.cores.iter().flatten()) {
            tensors.insert(format!("{path}.{name}"), core.clone());
        }
    }
    let ranks = products.iter().map(|(path, product)| (*path, as_number(product.rank()))).collect();
    let alphas = products.iter().map(|(path, product)| (*path, product.alpha)).collect();
    let (rank, rank_pattern) = exact::numbers(&ranks);
    let (alpha, alpha_pattern) = exact::numbers(&alphas);
    let paths: BTreeSet<&str> = products.keys().copied().collect();
    let config = [
        ("peft_type", json!("LOHA")),
        ("r", exact::number(rank)),
        ("alpha", exact::number(alpha)),
        ("rank_pattern", rank_pattern),
        ("alpha_pattern", alpha_pattern),
        ("use_effective_conv2d", json!(cores == Some(true))),
        ("target_modules", exact::targets(&paths, all)?),
    ];
    let config: Map<_, _> = config.into_iter().map(|(field, value)| (field.to_owned(), value)).collect();
    Ok(Some(Written { config, tensors }))
}
