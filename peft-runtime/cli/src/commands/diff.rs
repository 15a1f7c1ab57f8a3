//! `peft diff`: which layers of two adapters differ, and by how much.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use peft_runtime::candle_core::{DType, Tensor};
use peft_runtime::{Error, StoredAdapter, StoredLayer};
use serde::Serialize;
use serde_json::Value;

use crate::arguments::DiffArguments;
use crate::failure::Failure;
use crate::files::{open_adapter, open_base_weights, warn_of_left_out};
use crate::table::{Table, number};
use crate::terminal::{print, print_json};

/// How two adapters differ.
#[derive(Serialize)]
struct Report {
    a: String,
    b: String,
    identical: bool,
    /// The config fields that differ, each with both values.
    config: BTreeMap<String, (Value, Value)>,
    only_in_a: Vec<String>,
    only_in_b: Vec<String>,
    layers: Vec<LayerReport>,
}

/// How they differ in a layer that both have.
#[derive(Serialize)]
struct LayerReport {
    path: String,
    ranks: (Option<usize>, Option<usize>),
    scalings: (Option<f64>, Option<f64>),
    /// The norms of the two updates, scaling included.
    norms: (Option<f64>, Option<f64>),
    /// The norm of the difference: of the updates, or of all tensors where there is no update.
    distance: Option<f64>,
    /// The cosine of the angle between the updates.
    cosine: Option<f64>,
    /// Whether all tensors have the same bits.
    identical: bool,
    /// Why there is no distance.
    note: Option<&'static str>,
}

/// Runs the command.
///
/// # Errors
/// If an adapter cannot be read or its tensors do not fit its config.
pub fn run(arguments: &DiffArguments) -> Result<(), Failure> {
    let base = open_base_weights(&arguments.base)?;
    let a = open_adapter(&arguments.a, base.as_ref())?;
    let b = open_adapter(&arguments.b, base.as_ref())?;
    [&a, &b].into_iter().for_each(warn_of_left_out);
    let report = compare(&a, &b)?;
    if arguments.json {
        return print_json(&report);
    }
    print(&text(&report, &arguments.a.display().to_string(), &arguments.b.display().to_string()))
}

fn compare(a: &StoredAdapter, b: &StoredAdapter) -> Result<Report, Failure> {
    let (layers_a, layers_b) = (a.layers()?, b.layers()?);
    let find = |layers: &'_ [StoredLayer], like: &StoredLayer| {
        layers.iter().position(|layer| layer.path == like.path && is_base(layer) == is_base(like))
    };
    let mut layers = Vec::new();
    let mut only_in_a = Vec::new();
    for layer in &layers_a {
        match find(&layers_b, layer) {
            Some(place) => layers.push(compare_layers(layer, &layers_b[place])?),
            None => only_in_a.push(layer.path.as_str().to_owned()),
        }
    }
    let unmatched = layers_b.iter().filter(|layer| find(&layers_a, layer).is_none());
    let only_in_b: Vec<String> = unmatched.map(|layer| layer.path.as_str().to_owned()).collect();
    let config = compare_configs(a, b)?;
    let same_layers =
        only_in_a.is_empty() && only_in_b.is_empty() && layers.iter().all(|layer| layer.identical);
    let identical = same_layers && config.is_empty();
    let (a, b) = (a.name().to_owned(), b.name().to_owned());
    Ok(Report { a, b, identical, config, only_in_a, only_in_b, layers })
}

fn is_base(layer: &StoredLayer) -> bool {
    layer.kind == peft_runtime::StoredKind::Base
}

fn compare_configs(
    a: &StoredAdapter,
    b: &StoredAdapter,
) -> Result<BTreeMap<String, (Value, Value)>, Failure> {
    let fields = |adapter: &StoredAdapter| -> Result<BTreeMap<String, Value>, Failure> {
        Ok(serde_json::from_str(&adapter.config().to_json()?).map_err(Error::from)?)
    };
    let (a, b) = (fields(a)?, fields(b)?);
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let value =
        |fields: &BTreeMap<String, Value>, name: &String| fields.get(name).cloned().unwrap_or_default();
    let pairs = names.into_iter().map(|name| (name.clone(), (value(&a, name), value(&b, name))));
    Ok(pairs.filter(|(_, (a, b))| a != b).collect())
}

fn compare_layers(a: &StoredLayer, b: &StoredLayer) -> Result<LayerReport, Failure> {
    let ends =
        |layer: &StoredLayer| -> Vec<String> { layer.tensors.iter().map(|(end, _)| end.clone()).collect() };
    let pairs = || a.tensors.iter().zip(&b.tensors).map(|((_, a), (_, b))| (a, b));
    let comparable = ends(a) == ends(b) && pairs().all(|(a, b)| a.dims() == b.dims());
    let mut identical = comparable && a.scaling == b.scaling;
    let mut squares = 0.0;
    for (a, b) in pairs().filter(|_| comparable) {
        let apart = (wide(a)? - wide(b)?)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        identical = identical && apart == 0.0;
        squares += apart;
    }
    let difference = a.update_difference(b)?;
    let distance = match difference {
        Some((distance, _)) => Some(distance),
        None if comparable => Some(squares.sqrt()),
        None => None,
    };
    Ok(LayerReport {
        path: a.path.as_str().to_owned(),
        ranks: (a.rank, b.rank),
        scalings: (a.scaling, b.scaling),
        norms: (a.update_norm()?, b.update_norm()?),
        distance: if identical { Some(0.0) } else { distance },
        cosine: difference.map(|(_, cosine)| cosine),
        identical,
        note: distance.is_none().then_some("different shapes or tensors"),
    })
}

fn wide(tensor: &Tensor) -> Result<Tensor, Failure> {
    Ok(tensor.to_dtype(DType::F64)?)
}

fn text(report: &Report, a: &str, b: &str) -> String {
    if report.identical {
        return format!("{a} and {b} are identical\n");
    }
    let mut text = format!("a  {a}\nb  {b}\n");
    for (field, (a, b)) in &report.config {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "config: `{field}` is {a} in a, {b} in b");
    }
    for (side, paths) in [("a", &report.only_in_a), ("b", &report.only_in_b)] {
        for path in paths {
            let _ = writeln!(text, "only in {side}: {path}");
        }
    }
    let differ: Vec<&LayerReport> = report.layers.iter().filter(|layer| !layer.identical).collect();
    let same = report.layers.len() - differ.len();
    if same > 0 {
        let _ = writeln!(text, "{same} layers are identical");
    }
    if differ.is_empty() {
        return text;
    }
    let mut table = Table::new(&["module", "rank", "scaling", "‖a‖", "‖b‖", "‖a − b‖", "cosine", ""]);
    let rank = |rank: Option<usize>| rank.map_or_else(|| "-".to_owned(), |rank| rank.to_string());
    for layer in differ {
        table.row([
            layer.path.clone(),
            both(rank(layer.ranks.0), rank(layer.ranks.1)),
            both(number(layer.scalings.0), number(layer.scalings.1)),
            number(layer.norms.0),
            number(layer.norms.1),
            number(layer.distance),
            number(layer.cosine),
            layer.note.unwrap_or_default().to_owned(),
        ]);
    }
    format!("{text}\n{}", table.text())
}

/// Both values, or one if they are equal.
fn both(a: String, b: String) -> String {
    if a == b { a } else { format!("{a} | {b}") }
}
