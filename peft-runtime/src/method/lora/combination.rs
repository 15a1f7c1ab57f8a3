//! Weighted combinations of LoRA adapters, with PEFT's formulas.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{BIAS_KEY, EMBEDDING_KEYS, Keys, LAYER_KEYS, Lora, LoraConfig, LoraInit, dora};
use crate::adapter::{Combination, CombinationPart, Combined, CombinedLayer, Geometry, LowRank};
use crate::config::{CombinationType, CombineOptions, MajoritySign, Merge};
use crate::error::{CombinationError, Error, Result};
use crate::method::TrainableTokens;
use crate::ops::decompose::{self, svd};
use crate::ops::task_vectors::{
    clamp_to_quantile, drop_at_random, elected_mean, prune_by_magnitude, weighted_sum,
};
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
        if let Some(first) = configs.first() {
            add_untouched(first, layer, &mut tensors)?;
        }
        tensors.insert(path.parameter(a), factors.a);
        tensors.insert(path.parameter(b), factors.b);
    }
    let paths = request.layers.iter().map(|layer| layer.site.path);
    Ok(Combined { method: Arc::new(LoraConfig::combined(&configs, rank, &other_ranks, paths)), tensors })
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

/// What the sum has in addition to its factors: a fresh bias of B, and DoRA's norms of the base weight.
fn add_untouched(
    config: &LoraConfig,
    layer: &CombinedLayer<'_>,
    tensors: &mut BTreeMap<String, Tensor>,
) -> Result<()> {
    let site = &layer.site;
    let (geometry, dtype) = (site.geometry, site.adapter_dtype());
    if config.lora_bias() {
        tensors.insert(
            site.path.parameter(BIAS_KEY),
            Tensor::zeros(geometry.out_features(), dtype, site.device)?,
        );
    }
    if config.use_dora() {
        let zeros = |shape: Vec<usize>| Tensor::zeros(shape, dtype, site.device);
        let terms =
            LowRank { a: zeros(geometry.down_shape(1))?, b: zeros(geometry.up_shape(1))?, scaling: 1.0 };
        let lengths = dora::norm(geometry, &site.weight()?, &terms)?.reshape(dora::shape(geometry))?;
        tensors.insert(site.path.parameter(dora::KEY), lengths);
    }
    Ok(())
}

/// The factors of one layer.
fn merge_layer(
    layer: &CombinedLayer<'_>,
    parts: &[CombinationPart<'_>],
    options: &CombineOptions,
    rank: usize,
) -> Result<LowRank> {
    let states = layer.states::<Lora>(parts);
    let merged = match options.combination.merge() {
        _ if options.combination.factorises() => merge_updates(layer, &states, options, rank),
        Merge::Concatenation => concatenate(layer.site.geometry, &states, rank),
        _ => merge_factors(layer, &states, options),
    };
    merged.map_err(|error| match error {
        Error::Candle(source) => Error::on_layer(layer.site.path)(source),
        other => other,
    })
}

/// A and B merged separately, with the root of weight times scaling; the sign of a negative one counts only in A.
fn merge_factors(
    layer: &CombinedLayer<'_>,
    states: &[(&CombinationPart<'_>, &Lora)],
    options: &CombineOptions,
) -> Result<LowRank> {
    let mut factors: [(Vec<Tensor>, Vec<f64>); 2] = Default::default();
    for (part, lora) in states {
        let LowRank { a, b, scaling } = lora.constant_terms();
        if let Some(first) = factors[0].0.first().filter(|first| first.dims() != a.dims()) {
            let (rank, other, path) = (a.dim(0)?, first.dim(0)?, layer.site.path);
            return Combination::refuse(
                part,
                format!("it has rank {rank} on `{path}`, and another one has {other}"),
            );
        }
        let weight = part.weight * scaling;
        let root = weight.abs().sqrt();
        factors[0].0.push(a);
        factors[0].1.push(if weight < 0.0 { -root } else { root });
        factors[1].0.push(b);
        factors[1].1.push(root);
    }
    let [(a, a_weights), (b, b_weights)] = factors;
    let label = |factor: &str| format!("{}/{factor}", layer.site.path);
    Ok(LowRank {
        a: merge_tensors(a, &a_weights, options, &label("a"))?,
        b: merge_tensors(b, &b_weights, options, &label("b"))?,
        scaling: 1.0,
    })
}

/// The updates merged and cut to `rank` singular values: B = U·S, A = Vᵀ.
fn merge_updates(
    layer: &CombinedLayer<'_>,
    states: &[(&CombinationPart<'_>, &Lora)],
    options: &CombineOptions,
    rank: usize,
) -> Result<LowRank> {
    let geometry = layer.site.geometry;
    if let (Geometry::Conv { settings, .. }, Some((part, _))) = (geometry, states.first())
        && settings.groups > 1
    {
        let (groups, path) = (settings.groups, layer.site.path);
        return Combination::refuse(
            part,
            format!("the update of `{path}` is not a matrix, since it has {groups} groups"),
        );
    }
    let update = |(_, lora): &(&CombinationPart<'_>, &Lora)| {
        geometry.to_matrix(&geometry.low_rank_delta(&lora.constant_terms())?)
    };
    let updates = states.iter().map(update).collect::<candle_core::Result<Vec<_>>>()?;
    let weights: Vec<f64> = states.iter().map(|(part, _)| part.weight).collect();
    let merged = merge_tensors(updates, &weights, options, &format!("{}/update", layer.site.path))?;
    let most = merged.dim(0)?.min(merged.dim(1)?);
    if rank > most {
        return Err(CombinationError::RankOverUpdate { path: layer.site.path.clone(), rank, most }.into());
    }
    let factors = svd(&merged)?;
    let s = factors.s.narrow(0, 0, rank)?;
    let mut b = factors.u.narrow(1, 0, rank)?.broadcast_mul(&s.unsqueeze(0)?)?;
    let mut a = factors.vt.narrow(0, 0, rank)?.contiguous()?;
    if let Some(quantile) = options.svd_clamp {
        (b, a) = clamp_to_quantile(&b, &a, quantile)?;
    }
    Ok(LowRank {
        a: a.reshape(geometry.down_shape(rank))?,
        b: b.reshape(geometry.up_shape(rank))?,
        scaling: 1.0,
    })
}

fn merge_tensors(
    tensors: Vec<Tensor>,
    weights: &[f64],
    options: &CombineOptions,
    label: &str,
) -> Result<Tensor> {
    // Checked before: those that need a density have one.
    let density = options.density.unwrap_or(1.0);
    let merge = options.combination.merge();
    let mut kept = Vec::with_capacity(tensors.len());
    for (number, tensor) in tensors.into_iter().enumerate() {
        kept.push(match merge {
            Merge::Sum | Merge::Concatenation => tensor,
            Merge::Ties | Merge::PrunedSum => prune_by_magnitude(&tensor, density)?,
            Merge::DareSum | Merge::DareTies => {
                drop_at_random(&tensor, density, options.seed, &format!("{label}/{number}"))?
            }
        });
    }
    let by_frequency = options.majority_sign == MajoritySign::Frequency;
    Ok(match merge {
        Merge::Ties | Merge::DareTies => elected_mean(&kept, weights, by_frequency)?,
        _ => weighted_sum(&kept, weights)?,
    })
}

/// The factors side by side, with zeros up to `rank`; in groups, each group's ranks side by side.
fn concatenate(
    geometry: &Geometry,
    states: &[(&CombinationPart<'_>, &Lora)],
    rank: usize,
) -> Result<LowRank> {
    let groups = match geometry {
        Geometry::Conv { settings, .. } => settings.groups.max(1),
        _ => 1,
    };
    let (mut a, mut b, mut used) = (Vec::new(), Vec::new(), 0);
    let mut push = |down: Tensor, up: Tensor, rank: usize| -> candle_core::Result<()> {
        used += rank;
        a.push(down.reshape((groups, rank / groups, ()))?);
        b.push(up.reshape((geometry.out_features(), rank / groups))?);
        Ok(())
    };
    let mut dtype = candle_core::DType::F32;
    let mut device = Device::Cpu;
    for (part, lora) in states {
        let terms = lora.constant_terms();
        (dtype, device) = (terms.a.dtype(), terms.a.device().clone());
        push((terms.a * (part.weight * terms.scaling))?, terms.b, lora.rank)?;
    }
    let left = rank.saturating_sub(used);
    if left > 0 {
        let zeros = |shape: Vec<usize>| Tensor::zeros(shape, dtype, &device);
        a.push(zeros(vec![groups, left / groups, geometry.down_shape(1).iter().product()])?);
        b.push(zeros(vec![geometry.out_features(), left / groups])?);
    }
    Ok(LowRank {
        a: Tensor::cat(&a, 1)?.reshape(geometry.down_shape(rank))?,
        b: Tensor::cat(&b, 1)?.reshape(geometry.up_shape(rank))?,
        scaling: 1.0,
    })
}
