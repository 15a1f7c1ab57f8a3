//! Which bare parameters of a base model an adapter's keys mean: PEFT names only the module that has them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::name_map::NameMap;
use super::stored_contents::StoredContents;
use crate::adapter::{AdapterMethod, Geometry};
use crate::error::AdapterFileError;
use crate::path::ModulePath;

/// PEFT wraps the module once for each parameter.
const WRAPPED: &str = ".base_layer";

/// The usual parameters of fused experts in the order in which models have them.
const ORDER: [&str; 2] = ["gate_up_proj", "down_proj"];

/// Models whose experts are stored as `[experts, in, out]`.
const TRANSPOSED: [&str; 3] = ["gpt_oss", "llama4", "llama4_text"];

/// A parameter with an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BareParameter {
    /// Its path, `mlp.experts.gate_up_proj`.
    pub(super) path: ModulePath,
    pub(super) geometry: Geometry,
    /// How many parameters of its module PEFT wraps after it.
    pub(super) depth: usize,
}

/// The parameters by the stems of their adapters' keys.
pub(super) type BareParameters = BTreeMap<String, BareParameter>;

/// The stem of a key without PEFT's wrapping, and how often it is wrapped.
fn unwrapped(mut stem: &str) -> (&str, usize) {
    let mut depth = 0;
    while let Some(outer) = stem.strip_suffix(WRAPPED) {
        (stem, depth) = (outer, depth + 1);
    }
    (stem, depth)
}

/// The parameters of a base model of `shapes` that the adapter is on.
///
/// # Errors
/// If the keys may mean several parameters, or none.
pub(super) fn bare_parameters(
    method: &dyn AdapterMethod,
    contents: &StoredContents,
    shapes: &BTreeMap<String, Vec<usize>>,
    (names, config): (&NameMap, Option<&Value>),
) -> Result<BareParameters, AdapterFileError> {
    let wanted = method.selection().parameters;
    let mut found = BareParameters::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    let model_type = config.and_then(|config| config.get("model_type")).and_then(Value::as_str);
    let stored_transposed = model_type.is_some_and(|name| TRANSPOSED.contains(&name));
    let mut modules: BTreeMap<&str, Vec<(usize, &str)>> = BTreeMap::new();
    for stem in contents.keys().into_iter().filter_map(|key| Some(method.split_key(key)?.0)) {
        let (module, depth) = unwrapped(stem);
        let stems = modules.entry(module).or_default();
        if !stems.contains(&(depth, stem)) {
            stems.push((depth, stem));
        }
    }
    for (module, mut stems) in modules {
        let in_base = names.place(module).module;
        let candidates = candidates(&in_base, shapes, wanted);
        if candidates.is_empty() {
            continue;
        }
        // The innermost one is the model's first.
        stems.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
        for (place, (depth, stem)) in stems.iter().enumerate() {
            let factors = factors(method, contents, stem);
            let fitting = candidates.iter();
            let fitting = fitting
                .filter_map(|(name, shape)| Some((*name, geometry(&factors, shape, stored_transposed)?)));
            let fits: Vec<(&str, Geometry)> = fitting.collect();
            let in_order = ORDER.get(place).map(|name| format!("{in_base}.{name}"));
            let in_order =
                in_order.filter(|_| stems.len() == candidates.len() && candidates.len() == ORDER.len());
            let chosen = match fits.as_slice() {
                [one] => Some(one),
                _ => fits.iter().find(|(name, _)| in_order.as_deref() == Some(*name)),
            };
            let Some((name, geometry)) = chosen else { return Err(not_one(stem, &fits, &candidates)) };
            let own = name.rsplit('.').next().unwrap_or(name);
            let path = ModulePath::from(module).join(own);
            let parameter = BareParameter { path, geometry: geometry.clone(), depth: *depth };
            found.insert((*stem).to_owned(), parameter);
        }
    }
    Ok(found)
}

/// The parameters of the module itself that the config names.
fn candidates<'s>(
    module: &str,
    shapes: &'s BTreeMap<String, Vec<usize>>,
    wanted: &[String],
) -> Vec<(&'s str, &'s [usize])> {
    let start = format!("{module}.");
    let own = shapes.range(start.clone()..).take_while(|(name, _)| name.starts_with(&start));
    let own = own.filter(|(name, _)| !name[start.len()..].contains('.'));
    let is_wanted = |name: &str| {
        let is_end = |end: &String| {
            name.strip_suffix(end.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        wanted.iter().any(is_end)
    };
    own.filter(|(name, _)| is_wanted(name)).map(|(name, shape)| (name.as_str(), shape.as_slice())).collect()
}

/// The shapes of the first two factors of a stem.
fn factors(method: &dyn AdapterMethod, contents: &StoredContents, stem: &str) -> Vec<Vec<usize>> {
    let own =
        contents.keys().into_iter().filter(|key| method.split_key(key).is_some_and(|(path, _)| path == stem));
    own.filter_map(|key| contents.shape(key).map(<[usize]>::to_vec)).collect()
}

/// The geometry of a parameter, if A `[experts · rank, in]` and B `[out, rank · experts]` fit it.
fn geometry(factors: &[Vec<usize>], shape: &[usize], stored_transposed: bool) -> Option<Geometry> {
    let [a, b] = factors else { return None };
    let (&[rows, in_features], &[out_features, columns]) = (a.as_slice(), b.as_slice()) else { return None };
    match *shape {
        [first, second] => ((first, second) == (out_features, in_features) && rows == columns)
            .then_some(Geometry::Linear { in_features, out_features, transposed: false }),
        [experts, first, second] => {
            let straight = (first, second) == (out_features, in_features);
            let crossed = (second, first) == (out_features, in_features);
            let fits =
                (straight || crossed) && rows == columns && experts > 0 && rows.is_multiple_of(experts);
            let transposed = if straight && crossed { stored_transposed } else { crossed };
            fits.then_some(Geometry::Experts { experts, in_features, out_features, transposed })
        }
        _ => None,
    }
}

fn not_one(stem: &str, fits: &[(&str, Geometry)], candidates: &[(&str, &[usize])]) -> AdapterFileError {
    if fits.is_empty() {
        let known: Vec<String> =
            candidates.iter().map(|(name, shape)| format!("`{name}` {shape:?}")).collect();
        let reason = format!("fits none of the base model's parameters there: {}", known.join(", "));
        return AdapterFileError::Key { key: stem.to_owned(), reason };
    }
    let candidates = fits.iter().map(|(name, _)| (*name).to_owned()).collect();
    AdapterFileError::Ambiguous { key: stem.to_owned(), candidates }
}
