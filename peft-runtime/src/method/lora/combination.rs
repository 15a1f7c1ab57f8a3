//! Weighted combinations of LoRA adapters, with PEFT's formulas.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::combined_factors::{combined_bias, merge_layer};
use super::{BIAS_KEY, EMBEDDING_KEYS, Keys, LAYER_KEYS, Lora, LoraConfig, LoraInit, dora};
use crate::adapter::{Combination, Combined, CombinedLayer, Geometry, LowRank};
use crate::config::{CombinationType, CombineOptions, Merge};
use crate::error::{Error, Result};
use crate::method::TrainableTokens;
use crate::ops::decompose;
use crate::schema::Family;

/// Makes one LoRA adapter out of several; its scaling is 1.
pub(super) fn combine(request: &Combination<'_>) -> Result<Combined> {
    let configs = request.configs::<LoraConfig>()?;
    check(request, &configs)?;
    let options = match request.parts.as_slice() {
        // One adapter has nothing to be merged with.
        [_] => &CombineOptions { combination: CombinationType::Linear, ..*request.options },
        _ => request.options,
    };
    let rank = combined_rank(request, &configs, options)?;
    let config = shared(&configs, options);
    let mut tensors = BTreeMap::new();
    let mut other_ranks = Vec::new();
    // Rows of embeddings start again from the base model's, as copies do.
    for layer in &request.layers {
        let path = layer.site.path;
        if let Some((_, tokens)) = layer.states::<TrainableTokens>(&request.parts).first() {
            tensors.extend(
                tokens.base_rows(&layer.site)?.map(|rows| (path.parameter(TrainableTokens::KEY), rows)),
            );
        }
        if layer.states::<Lora>(&request.parts).is_empty() {
            continue;
        }
        let factors = merge_layer(layer, &request.parts, options, rank)?;
        let own_rank = factors.a.dim(0)?;
        if own_rank != rank {
            other_ranks.push((layer.site.path.clone(), own_rank));
        }
        let Keys { a, b } = keys(layer.site.geometry);
        if config.lora_bias() {
            let bias = combined_bias(layer, &request.parts, options)?;
            tensors.insert(path.parameter(BIAS_KEY), bias);
        }
        if config.use_dora() {
            tensors.insert(path.parameter(dora::KEY), base_magnitudes(layer)?);
        }
        tensors.insert(path.parameter(a), factors.a);
        tensors.insert(path.parameter(b), factors.b);
    }
    let paths = request.layers.iter().map(|layer| layer.site.path);
    let combined = config.combined(&configs, rank, &other_ranks, paths);
    let combined = if options.restarts { combined.copying_as(config) } else { combined };
    Ok(Combined { method: Arc::new(combined), tensors })
}

/// The first config, with a bias of B if any of them has one; with restarts as it is, as in PEFT.
fn shared(configs: &[&LoraConfig], options: &CombineOptions) -> LoraConfig {
    let first = configs.first().map(|first| (*first).clone()).unwrap_or_default();
    let any = configs.iter().any(|config| config.lora_bias());
    if options.restarts { first } else { first.with_lora_bias(any) }
}

fn keys(geometry: &Geometry) -> Keys {
    if geometry.family() == Family::Embedding { EMBEDDING_KEYS } else { LAYER_KEYS }
}

/// Refuses what would compute something else than its parts say.
fn check(request: &Combination<'_>, configs: &[&LoraConfig]) -> Result<()> {
    for (number, (part, config)) in request.parts.iter().zip(configs).enumerate() {
        if number == 0 && config.use_rslora() {
            return Combination::refuse(
                part,
                "the sum takes over its rank-stabilised scaling, and would be too large by √rank; \
                 put an adapter without `use_rslora` first",
            );
        }
        if config.weight_tying() {
            return Combination::refuse(
                part,
                "its `ensure_weight_tying` says that two layers share factors, which a sum does not say",
            );
        }
        if config.use_dora() && !request.options.restarts {
            return Combination::refuse(
                part,
                "DoRA gives the weight a trained magnitude, which no sum of updates has; merge it into the base model, or let \
                 the magnitudes start again with `CombineOptions::with_restarts`",
            );
        }
        if !config.target_parameters().is_empty() {
            return Combination::refuse(part, "it adapts bare parameters, whose sums PEFT has no form for");
        }
        if config.trainable_tokens() != configs.first().and_then(|first| first.trainable_tokens()) {
            let reason = "it trains other tokens than the first adapter, whose config the sum takes over";
            return Combination::refuse(part, reason);
        }
        if super::start::takes_from_base(config.init()) || config.init() == LoraInit::Loftq {
            let init = config.init().describe();
            return Combination::refuse(
                part,
                format!(
                    "its init `{init}` changed the base weights, which a sum cannot say; save it as plain LoRA first"
                ),
            );
        }
    }
    Ok(())
}

/// The rank of the result.
fn combined_rank(
    request: &Combination<'_>,
    configs: &[&LoraConfig],
    options: &CombineOptions,
) -> Result<usize> {
    let largest = |config: &LoraConfig| {
        config.rank_pattern().iter().map(|(_, rank)| *rank).chain([config.rank()]).max().unwrap_or_default()
    };
    let ranks: Vec<usize> = configs.iter().map(|config| largest(config)).collect();
    let max = ranks.iter().copied().max().unwrap_or_default();
    if options.combination.factorises() {
        if !decompose::IS_AVAILABLE {
            let setting = format!("`combination_type` = \"{}\"", options.combination);
            return Err(Error::no_decompositions(setting));
        }
        return Ok(options.svd_rank.unwrap_or(max));
    }
    if options.combination.merge() == Merge::Concatenation {
        return Ok(ranks.iter().sum());
    }
    match request.parts.iter().zip(&ranks).find(|(_, rank)| **rank != ranks[0]) {
        Some((part, rank)) => Combination::refuse(
            part,
            format!(
                "it has rank {rank} and `{}` has {}; `{}` needs equal ranks, `cat` and `svd` do not",
                request.parts[0].name, ranks[0], options.combination
            ),
        ),
        None => Ok(max),
    }
}

/// DoRA's magnitudes as they start: those of the base weight.
fn base_magnitudes(layer: &CombinedLayer<'_>) -> Result<Tensor> {
    let site = &layer.site;
    let (geometry, dtype) = (site.geometry, site.wide_dtype());
    let zeros = |shape: Vec<usize>| Tensor::zeros(shape, dtype, site.device);
    let terms = LowRank { a: zeros(geometry.down_shape(1))?, b: zeros(geometry.up_shape(1))?, scaling: 1.0 };
    Ok(dora::norm(geometry, &site.weight()?, &terms)?.reshape(dora::shape(geometry))?)
}
