//! The factors of one layer of a combination.

use candle_core::{DType, Device, Tensor};

use super::Lora;
use crate::adapter::{Combination, CombinationPart, CombinedLayer, Geometry, LowRank};
use crate::config::{CombineOptions, MajoritySign, Merge};
use crate::error::{CombinationError, Error, Result};
use crate::ops::decompose::svd;
use crate::ops::task_vectors::{
    clamp_to_quantile, drop_at_random, elected_mean, prune_by_magnitude, weighted_sum,
};
use crate::ops::widened_value;

/// The factors of one layer.
pub(super) fn merge_layer(
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
        let LowRank { a, b, scaling } = lora.constant_terms()?;
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
        geometry.to_matrix(&geometry.low_rank_delta(&lora.constant_terms()?)?)
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

/// The biases of B, each with its adapter's scaling, combined as updates are; zeros where they start again.
pub(super) fn combined_bias(
    layer: &CombinedLayer<'_>,
    parts: &[CombinationPart<'_>],
    options: &CombineOptions,
) -> Result<Tensor> {
    let site = &layer.site;
    let mut weights = Vec::new();
    let mut biases = Vec::new();
    for (part, lora) in layer.states::<Lora>(parts) {
        let Some(bias) = lora.b_bias.as_ref().filter(|_| !options.restarts) else { continue };
        weights.push(part.weight);
        biases.push((widened_value(bias)? * lora.scaling)?);
    }
    if biases.is_empty() {
        return Ok(Tensor::zeros(site.geometry.out_features(), site.wide_dtype(), site.device)?);
    }
    merge_tensors(biases, &weights, options, &format!("{}/bias", site.path))
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
    // PEFT has the weights as a tensor in f32, which only adapters in double precision would notice.
    #[expect(clippy::cast_possible_truncation, reason = "that is the point")]
    let rounded = |weight: f64| f64::from(weight as f32);
    let is_double = tensors.iter().any(|tensor| tensor.dtype() == DType::F64);
    let weights: Vec<f64> =
        weights.iter().map(|weight| if is_double { *weight } else { rounded(*weight) }).collect();
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
        Merge::Ties | Merge::DareTies => elected_mean(&kept, &weights, by_frequency)?,
        _ => weighted_sum(&kept, &weights)?,
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
    let mut dtype = DType::F32;
    let mut device = Device::Cpu;
    for (part, lora) in states {
        let terms = lora.constant_terms()?;
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
