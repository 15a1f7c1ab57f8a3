//! Updates as an adapter of LoKr, where all of them are such products with the sides that PEFT gives the halves.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use serde_json::{Map, json};

use super::delta::{Delta, Half, Kronecker, as_number};
use super::exact;
use super::layer::LayerUpdate;
use super::written::Written;
use crate::error::Result;
use crate::method::lokr::factorization;

/// A layer's product with the shapes that PEFT's settings have to give.
struct Product<'l> {
    terms: &'l Kronecker,
    weight: &'l [usize],
    /// The sides of the first half, outputs and inputs.
    first: (usize, usize),
    /// The outputs of the second half, and its inputs without the window.
    second: (usize, usize),
}

/// The adapter, unless PEFT's LoKr cannot hold one of the updates.
pub(super) fn write<'l>(
    layers: &BTreeMap<String, LayerUpdate>,
    all: impl Iterator<Item = &'l str>,
) -> Result<Option<Written>> {
    let products: Option<BTreeMap<&str, Product<'_>>> =
        layers.iter().map(|(path, layer)| Some((path.as_str(), product(layer)?))).collect();
    let Some(products) = products.filter(|products| !products.is_empty()) else { return Ok(None) };
    let both = products.values().any(|product| matches!(product.terms.first, Half::Product(..)));
    let Some(has_core) = windows_agree(&products) else { return Ok(None) };
    let ranks: Option<BTreeMap<&str, f64>> =
        products.iter().map(|(path, product)| Some((*path, as_number(product.rank(both)?)))).collect();
    let (Some(ranks), Some(factor)) = (ranks, factor(&products)) else { return Ok(None) };
    let mut tensors = BTreeMap::new();
    for (path, product) in &products {
        for (name, tensor) in product.tensors()? {
            tensors.insert(format!("{path}.{name}"), tensor);
        }
    }
    // Two whole halves have the scale 1.
    let alpha = |path: &str, product: &Product<'_>| match product.terms.rank() {
        Some(_) => product.terms.alpha.unwrap_or_default(),
        None => ranks.get(path).copied().unwrap_or_default(),
    };
    let alphas = products.iter().map(|(path, product)| (*path, alpha(path, product))).collect();
    let (rank, rank_pattern) = exact::numbers(&ranks);
    let (alpha, alpha_pattern) = exact::numbers(&alphas);
    let paths: BTreeSet<&str> = products.keys().copied().collect();
    let config = [
        ("peft_type", json!("LOKR")),
        ("r", exact::number(rank)),
        ("alpha", exact::number(alpha)),
        ("rank_pattern", rank_pattern),
        ("alpha_pattern", alpha_pattern),
        ("decompose_both", json!(both)),
        ("decompose_factor", json!(factor)),
        ("use_effective_conv2d", json!(has_core)),
        ("target_modules", exact::targets(&paths, all)?),
    ];
    let config: Map<_, _> = config.into_iter().map(|(field, value)| (field.to_owned(), value)).collect();
    Ok(Some(Written { config, tensors }))
}

/// The product of a layer, if its update is one that PEFT can have there.
fn product(layer: &LayerUpdate) -> Option<Product<'_>> {
    let Delta::Kronecker(terms) = &layer.delta else { return None };
    let elements: usize = layer.weight.get(2..)?.iter().product();
    let (first, (outputs, columns)) = (terms.first.sides()?, terms.second.sides()?);
    let whole = matches!(terms.second, Half::Whole(_));
    // PEFT multiplies out a whole second half of a one-dimensional convolution in another order.
    let fits = layer.lengths.is_none()
        && columns.is_multiple_of(elements)
        && !matches!(terms.first, Half::Core { .. })
        && !(whole && layer.weight.len() == 3);
    fits.then_some(Product {
        terms,
        weight: &layer.weight,
        first,
        second: (outputs, columns / elements.max(1)),
    })
}

/// Whether layers with a window and factors have cores, which is one setting for all of them; `None` if they differ.
fn windows_agree(products: &BTreeMap<&str, Product<'_>>) -> Option<bool> {
    let mut cores: Option<bool> = None;
    for product in products.values() {
        let has_window = product.weight.iter().skip(2).any(|size| *size != 1);
        let core = match &product.terms.second {
            Half::Whole(_) => continue,
            Half::Product(..) => false,
            Half::Core { core, .. } => {
                if !has_window || core.dims().get(2..) != product.weight.get(2..) || product.weight.len() != 4
                {
                    return None;
                }
                true
            }
        };
        if has_window && cores.replace(core).is_some_and(|before| before != core) {
            return None;
        }
    }
    Some(cores == Some(true))
}

impl Product<'_> {
    /// The rank with which PEFT gives the halves the forms that they have; `None` if there is none.
    fn rank(&self, both: bool) -> Option<usize> {
        let (a, c) = self.first;
        let (b, d) = self.second;
        let (first_half, second_half) = (a.max(c).div_ceil(2), b.max(d).div_ceil(2));
        let is_whole = |half: &Half| matches!(half, Half::Whole(_));
        let (first_whole, second_whole) = (is_whole(&self.terms.first), is_whole(&self.terms.second));
        let least = if second_whole { second_half } else { 1 };
        let least = if first_whole && both { least.max(first_half) } else { least };
        let rank = self.terms.rank().unwrap_or(least.max(1));
        let same = self.terms.first.rank().is_none_or(|own| own == rank);
        let first_fits = first_whole || rank < first_half;
        let second_fits = second_whole || rank < second_half;
        (same && rank >= least && first_fits && second_fits).then_some(rank)
    }

    fn tensors(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let mut tensors = match &self.terms.first {
            Half::Whole(whole) => vec![("lokr_w1", whole.reshape(self.first)?)],
            Half::Product(left, right) | Half::Core { left, right, .. } => {
                vec![("lokr_w1_a", left.clone()), ("lokr_w1_b", right.clone())]
            }
        };
        match &self.terms.second {
            Half::Whole(whole) => {
                let (outputs, inputs) = self.second;
                let shape = [&[outputs, inputs], self.weight.get(2..).unwrap_or_default()].concat();
                tensors.push(("lokr_w2", whole.reshape(shape)?));
            }
            Half::Product(left, right) => {
                tensors.extend([("lokr_w2_a", left.clone()), ("lokr_w2_b", right.clone())]);
            }
            Half::Core { core, left, right } => {
                tensors.extend([("lokr_w2_a", left.clone()), ("lokr_w2_b", right.clone())]);
                tensors.push(("lokr_t2", core.clone()));
            }
        }
        Ok(tensors)
    }
}

/// `decompose_factor` with which PEFT splits the sides of all weights as the file does.
fn factor(products: &BTreeMap<&str, Product<'_>>) -> Option<i64> {
    let splits: BTreeSet<(usize, usize)> = products
        .values()
        .flat_map(|product| {
            let ((a, c), (b, d)) = (product.first, product.second);
            [(a, a.checked_mul(b)), (c, c.checked_mul(d))]
        })
        .map(|(first, side)| Some((first, side?)))
        .collect::<Option<_>>()?;
    let fits =
        |factor: Option<usize>| splits.iter().all(|(first, side)| factorization(*side, factor).0 == *first);
    if fits(None) {
        return Some(-1);
    }
    // The factor is one of the sides, unless it divides none of them and only limits what is searched for.
    let largest = splits.iter().map(|(first, _)| *first).max()?;
    let found = (1..=largest).rev().find(|factor| fits(Some(*factor)))?;
    i64::try_from(found).ok()
}
