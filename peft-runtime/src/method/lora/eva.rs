//! EVA: A starts as the directions in which a layer's inputs vary most, and ranks go where they explain the most
//! variance. <https://arxiv.org/abs/2410.07170>

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::Tensor;

use super::{EvaConfig, LAYER_KEYS, Lora, LoraConfig};
use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::inject::{InjectionReport, Origin, exactly_targeted, make_from_memory, plan, swap};
use crate::layer::{no_grad, record_inputs};
use crate::manage::{autocasts, check_known, check_not_merged, for_each_stack, method_of};
use crate::module::{Injectable, leaves};
use crate::ops::decompose;
use crate::ops::decompose::principal::{Components, Moments};
use crate::path::ModulePath;
use crate::schema::Family;

const OPERATION: &str = "initialise from data";

/// A linear layer of the adapter, and what is known about its inputs.
struct Layer {
    path: ModulePath,
    is_linear: bool,
    rank: usize,
    /// The layers that share an input share one set of moments.
    group: Option<usize>,
}

/// Initialises the adapter `name` with the principal directions of its layers' inputs over `batches`.
pub(crate) fn initialise_eva<M, B, F>(
    model: &mut M,
    name: &str,
    batches: impl IntoIterator<Item = B>,
    forward: F,
) -> Result<InjectionReport>
where
    M: Injectable + ?Sized,
    F: FnMut(&M, B) -> candle_core::Result<Tensor>,
{
    if !decompose::IS_AVAILABLE {
        return Err(Error::no_decompositions("`initialise_eva`"));
    }
    check_known(&leaves(model), &[name])?;
    check_not_merged(model, name, OPERATION)?;
    let method = method_of(model, name)?;
    let config = method.downcast_ref::<LoraConfig>();
    let Some((config, eva)) = config.and_then(|config| Some((config, config.eva()?))) else {
        let reason = "its config does not select EVA, as LoRA's `with_eva(…)` does".to_owned();
        return Err(Error::Unsupported { operation: OPERATION, adapter: name.to_owned(), reason });
    };
    // Inputs are recorded under the paths that the layers store, which this brings up to date.
    for_each_stack(model, |_| {});
    let mut layers = adapted_layers(model, name);
    let moments = watch(model, name, &mut layers, batches, forward)?;
    let components = principal_components(&layers, &moments, &eva)?;
    let ranks = share_out(&layers, &components, &eva);
    let method = exactly_targeted(model, Arc::new(config_for(config, &eva, &layers, &ranks)?));
    let tensors = tensors_for(model, name, &layers, &components, &ranks, &eva)?;
    let autocasts = autocasts(&leaves(model), name);
    let plan = plan(model, method.as_ref(), name, Origin::Swap)?.with_autocasts(autocasts);
    let trainable = leaves(model)
        .iter()
        .any(|(_, leaf)| leaf.stack().and_then(|stack| stack.slot(name)).is_some_and(|slot| slot.trainable));
    let changes = make_from_memory(model, &plan, &tensors)?;
    swap(model, &plan, changes, trainable)
}

/// The layers that carry the adapter, in model order.
fn adapted_layers<M: Injectable + ?Sized>(model: &M, name: &str) -> Vec<Layer> {
    let with_adapter = leaves(model).into_iter().filter_map(|(path, leaf)| {
        let adapter = leaf.stack()?.slot(name)?.adapter()?;
        let rank = adapter.downcast_ref::<Lora>()?.rank()?;
        let is_linear = leaf.kind().family == Family::Linear;
        Some(Layer { path, is_linear, rank, group: None })
    });
    with_adapter.collect()
}

/// Runs the batches through the base model and gathers the moments of the layers' inputs.
fn watch<M, B, F>(
    model: &M,
    name: &str,
    layers: &mut [Layer],
    batches: impl IntoIterator<Item = B>,
    mut forward: F,
) -> Result<Vec<Moments>>
where
    M: Injectable + ?Sized,
    F: FnMut(&M, B) -> candle_core::Result<Tensor>,
{
    let places = linear_places(layers);
    let mut moments: Vec<Moments> = Vec::new();
    for batch in batches {
        let (output, inputs) = record_inputs(name, || no_grad(|| forward(model, batch)));
        output?;
        // The first batch shows which layers read the same tensor; one of them then stands for all.
        let mut groups: BTreeMap<String, usize> = BTreeMap::new();
        let mut counted = BTreeSet::new();
        for (path, input) in inputs {
            let Some(index) = places.get(&path) else { continue };
            let Some(layer) = layers.get_mut(*index) else { continue };
            let group = *layer.group.get_or_insert_with(|| {
                *groups.entry(format!("{:?}", input.id())).or_insert_with(|| {
                    moments.push(Moments::default());
                    moments.len() - 1
                })
            });
            if let (true, Some(moments)) = (counted.insert(group), moments.get_mut(group)) {
                moments.add(&input).map_err(Error::on_layer(&layer.path))?;
            }
        }
    }
    let unseen = |index: &&usize| layers.get(**index).is_some_and(|layer| layer.group.is_none());
    if let Some(layer) = places.values().find(unseen).and_then(|index| layers.get(*index)) {
        let reason = format!("no batch reached `{}`", layer.path);
        return Err(Error::Unsupported { operation: OPERATION, adapter: name.to_owned(), reason });
    }
    Ok(moments)
}

/// The index of each linear layer in the list, by its path.
fn linear_places(layers: &[Layer]) -> BTreeMap<ModulePath, usize> {
    let linear = layers.iter().enumerate().filter(|(_, layer)| layer.is_linear);
    linear.map(|(index, layer)| (layer.path.clone(), index)).collect()
}

/// The components of each group of layers, as many as any layer of the group could get.
fn principal_components(layers: &[Layer], moments: &[Moments], eva: &EvaConfig) -> Result<Vec<Components>> {
    let mut components = Vec::with_capacity(moments.len());
    for (group, moments) in moments.iter().enumerate() {
        let members = layers.iter().filter(|layer| layer.group == Some(group));
        let most = members.map(|layer| most_ranks(layer, eva)).max().unwrap_or_default();
        components.push(moments.principal_components(most)?);
    }
    Ok(components)
}

/// ρ times the layer's own rank.
fn most_ranks(layer: &Layer, eva: &EvaConfig) -> usize {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is far below 2^53, and ρ is at least 1"
    )]
    let most = (layer.rank as f64 * eva.rho).round() as usize;
    most
}

/// The ranks of the layers: the budget goes to the components that explain the most variance, in whichever layer they
/// are.
fn share_out(layers: &[Layer], components: &[Components], eva: &EvaConfig) -> Vec<usize> {
    let watched = |layer: &&Layer| layer.group.is_some();
    let budget: usize = layers.iter().filter(watched).map(|layer| layer.rank).sum();
    let mut candidates = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let Some(components) = layer.group.and_then(|group| components.get(group)) else { continue };
        let shares = components.explained.iter().take(most_in_group(layers, layer, eva));
        candidates.extend(shares.map(|share| (*share, index)));
    }
    // A stable sort: among equal shares, the layer that comes first in the model wins.
    candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut ranks: Vec<usize> =
        layers.iter().map(|layer| if layer.group.is_some() { 0 } else { layer.rank }).collect();
    for (_, index) in candidates.into_iter().take(budget) {
        ranks[index] += 1;
    }
    ranks
}

/// Layers that share an input share the highest limit among them.
fn most_in_group(layers: &[Layer], layer: &Layer, eva: &EvaConfig) -> usize {
    let members = layers.iter().filter(|other| other.group == layer.group);
    members.map(|member| most_ranks(member, eva)).max().unwrap_or_default()
}

/// The config that a saved adapter needs: the layers that are left, their ranks, and alphas that keep the scaling.
fn config_for(config: &LoraConfig, eva: &EvaConfig, layers: &[Layer], ranks: &[usize]) -> Result<LoraConfig> {
    let mut kept: Vec<(&ModulePath, usize, f64)> = Vec::new();
    for (layer, rank) in layers.iter().zip(ranks).filter(|(_, rank)| **rank > 0) {
        let (_, alpha) = config.settings().size_at(&layer.path)?;
        #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
        let growth = if eva.adjust_scaling_factors { *rank as f64 / layer.rank.max(1) as f64 } else { 1.0 };
        kept.push((&layer.path, *rank, alpha * growth));
    }
    Ok(config.clone().with_sizes(&kept))
}

/// The adapter's tensors with the components as A and zeros as B.
fn tensors_for<M: Injectable + ?Sized>(
    model: &M,
    name: &str,
    layers: &[Layer],
    components: &[Components],
    ranks: &[usize],
    eva: &EvaConfig,
) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for (path, leaf) in leaves(model) {
        let Some(slot) = leaf.stack().and_then(|stack| stack.slot(name)) else { continue };
        if let Some(adapter) = slot.adapter() {
            for tensor in adapter.tensors().into_iter().filter(|tensor| tensor.stored) {
                tensors.insert(path.parameter(tensor.key), tensor.var.as_detached_tensor());
            }
        }
        for copy in slot.copy().unwrap_or_default() {
            tensors.insert(path.parameter(copy.name), copy.var.as_detached_tensor());
        }
    }
    for (layer, rank) in layers.iter().zip(ranks) {
        let Some(components) = layer.group.and_then(|group| components.get(group)) else { continue };
        let [a_key, b_key] = [LAYER_KEYS.a, LAYER_KEYS.b].map(|key| layer.path.parameter(key));
        if *rank == 0 {
            let prefix = format!("{}.", layer.path);
            tensors.retain(|key, _| !key.starts_with(&prefix));
            continue;
        }
        let (Some(a), Some(b)) = (tensors.get(&a_key), tensors.get(&b_key)) else { continue };
        let directions = components.directions(*rank, eva.whiten)?.to_dtype(a.dtype())?;
        let directions = directions.to_device(a.device())?;
        let zeros = Tensor::zeros((b.dim(0)?, *rank), b.dtype(), b.device())?;
        tensors.insert(a_key, directions);
        tensors.insert(b_key, zeros);
    }
    Ok(tensors)
}
