//! `peft inspect`: what an adapter contains.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use indicatif::{DecimalBytes, HumanCount};
use peft_runtime::candle_core::{DType, Tensor};
use peft_runtime::{StoredAdapter, StoredLayer};
use serde::Serialize;
use serde_json::Value;

use crate::arguments::InspectArguments;
use crate::failure::Failure;
use crate::files::{open_adapter, open_base_weights};
use crate::heat_map;
use crate::table::{Table, number};
use crate::terminal::{print, print_json, warn};

/// The format of which nothing is said.
const PEFTS_OWN: &str = "peft";

/// The end of the factor A's name, whatever the method.
const A: &str = "_A";

/// The end of the factor B's name.
const B: &str = "_B";

/// What an adapter contains.
#[derive(Serialize)]
struct Report {
    name: String,
    /// The format of its files.
    format: &'static str,
    method: String,
    base_model: Value,
    task_type: Value,
    target_modules: Value,
    modules_to_save: Value,
    /// How many layers have each rank.
    ranks: BTreeMap<usize, usize>,
    /// How many layers have each scaling.
    scalings: BTreeMap<String, usize>,
    parameters: usize,
    tensors: usize,
    bytes: usize,
    /// How many tensors have each dtype.
    dtypes: BTreeMap<String, usize>,
    layers: Vec<LayerReport>,
    /// The keys of parts that are for other models.
    left_out: Vec<String>,
    warnings: Vec<String>,
}

/// What it contains for one layer.
#[derive(Serialize)]
struct LayerReport {
    path: String,
    kind: String,
    rank: Option<usize>,
    scaling: Option<f64>,
    parameters: usize,
    /// The norm of the factor A of methods that have one.
    norm_a: Option<f64>,
    /// The norm of the factor B of methods that have one.
    norm_b: Option<f64>,
    /// The norm of the update, scaling included.
    norm_update: Option<f64>,
    /// The norms of all tensors, by the ends of their keys.
    norms: BTreeMap<String, f64>,
}

/// Runs the command.
///
/// # Errors
/// If the adapter cannot be read or its tensors do not fit its config.
pub fn run(arguments: &InspectArguments) -> Result<(), Failure> {
    let base = open_base_weights(&arguments.base)?;
    let report = inspect(&open_adapter(&arguments.adapter, base.as_ref())?)?;
    if let Some(path) = &arguments.plot {
        let cells = report.layers.iter().map(|layer| (layer.path.as_str(), layer.size()));
        heat_map::draw(path, &report.name, cells)?;
    }
    if arguments.json {
        return print_json(&report);
    }
    print(&text(&report))?;
    report.warnings.iter().for_each(|warning| warn(warning));
    Ok(())
}

fn inspect(adapter: &StoredAdapter) -> Result<Report, Failure> {
    let config: Value =
        serde_json::from_str(&adapter.config().to_json()?).map_err(peft_runtime::Error::from)?;
    let field = |name: &str| config.get(name).cloned().unwrap_or_default();
    let shapes = adapter.shapes();
    let mut report = Report {
        name: adapter.name().to_owned(),
        format: adapter.format(),
        method: field("peft_type").as_str().unwrap_or_default().to_owned(),
        base_model: field("base_model_name_or_path"),
        task_type: field("task_type"),
        target_modules: field("target_modules"),
        modules_to_save: field("modules_to_save"),
        ranks: BTreeMap::new(),
        scalings: BTreeMap::new(),
        parameters: 0,
        tensors: shapes.len(),
        bytes: shapes.iter().map(|shape| shape.bytes).sum(),
        dtypes: BTreeMap::new(),
        layers: Vec::new(),
        left_out: adapter.left_out().to_vec(),
        warnings: Vec::new(),
    };
    for shape in shapes {
        *report.dtypes.entry(shape.dtype).or_default() += 1;
        report.parameters += shape.shape.iter().product::<usize>();
    }
    for layer in adapter.layers()? {
        if let Some(rank) = layer.rank {
            *report.ranks.entry(rank).or_default() += 1;
        }
        if layer.scaling.is_some() {
            *report.scalings.entry(number(layer.scaling)).or_default() += 1;
        }
        let broken = warnings(&layer, &mut report.warnings)?;
        report.layers.push(layer_report(&layer, broken)?);
    }
    let unmatched = adapter.unmatched_patterns()?;
    report.warnings.extend(unmatched.iter().map(|unmatched| format!("{unmatched}, and has no effect")));
    report.warnings.extend(of_superseded(adapter.superseded()));
    Ok(report)
}

/// A warning of tensors that are not read.
fn of_superseded(keys: &[String]) -> Option<String> {
    let first = keys.first()?;
    let others = match keys.len() - 1 {
        0 => String::new(),
        others => format!(" and {others} more"),
    };
    Some(format!("not read, because other tensors of the file count in their place: `{first}`{others}"))
}

/// Adds a warning for each suspicious tensor of a layer; returns whether any of them has values that are not finite.
fn warnings(layer: &StoredLayer, warnings: &mut Vec<String>) -> Result<bool, Failure> {
    let mut broken = false;
    for (end, tensor) in &layer.tensors {
        let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        let wrong = values.iter().filter(|value| !value.is_finite()).count();
        if wrong > 0 {
            broken = true;
            warnings.push(format!("`{}.{end}` has {wrong} values that are NaN or infinite", layer.path));
        } else if !values.is_empty() && values.iter().all(|value| *value == 0.0) {
            // A tensor that is zero does not always mean no effect: if the output is multiplied by it, nothing is left.
            let is_idle = layer.update_norm()? == Some(0.0);
            let what = if is_idle { ": the adapter does nothing there" } else { "" };
            warnings.push(format!("`{}.{end}` is zero everywhere{what}", layer.path));
        }
    }
    Ok(broken)
}

fn layer_report(layer: &StoredLayer, broken: bool) -> Result<LayerReport, Failure> {
    let mut norms = BTreeMap::new();
    for (end, tensor) in &layer.tensors {
        norms.insert(end.clone(), norm(tensor)?);
    }
    let factor = |suffix: &str| norms.iter().find(|(end, _)| is_factor(end, suffix)).map(|(_, norm)| *norm);
    Ok(LayerReport {
        path: layer.path.as_str().to_owned(),
        kind: layer.kind.to_string(),
        rank: layer.rank,
        scaling: layer.scaling,
        parameters: layer.elements(),
        norm_a: factor(A),
        norm_b: factor(B),
        norm_update: if broken { None } else { layer.update_norm()? },
        norms,
    })
}

/// Whether the end of a key names a factor: `lora_A.weight` is A, and so is `lora_embedding_A`.
fn is_factor(end: &str, suffix: &str) -> bool {
    end.strip_suffix(".weight").unwrap_or(end).ends_with(suffix)
}

fn norm(tensor: &Tensor) -> Result<f64, Failure> {
    Ok(tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt())
}

impl LayerReport {
    /// What the heat map shows: the norm of the update, or of all tensors where there is none.
    fn size(&self) -> f64 {
        let all = || self.norms.values().map(|norm| norm * norm).sum::<f64>().sqrt();
        self.norm_update.unwrap_or_else(all)
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<12}{value}");
    };
    line("adapter", &format!("{} ({})", report.name, report.method));
    if report.format != PEFTS_OWN {
        line("format", report.format);
    }
    if let Some(first) = report.left_out.first() {
        let number = report.left_out.len();
        line("left out", &format!("{number} tensors for other models, such as {first}"));
    }
    let told = [
        ("base model", &report.base_model),
        ("task", &report.task_type),
        ("targets", &report.target_modules),
        ("saved", &report.modules_to_save),
    ];
    for (name, value) in told {
        match value {
            Value::Null => {}
            Value::String(value) => line(name, value),
            Value::Array(values) => {
                let values: Vec<String> = values
                    .iter()
                    .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                    .collect();
                line(name, &values.join(", "));
            }
            other => line(name, &other.to_string()),
        }
    }
    if !report.ranks.is_empty() {
        line("rank", &histogram(report.ranks.iter()));
    }
    if !report.scalings.is_empty() {
        line("scaling", &histogram(report.scalings.iter()));
    }
    let dtypes: Vec<String> =
        report.dtypes.iter().map(|(dtype, number)| format!("{number} {dtype}")).collect();
    let size = DecimalBytes(report.bytes as u64);
    let tensors = dtypes.join(", ");
    line("parameters", &format!("{} in {tensors} tensors, {size}", HumanCount(report.parameters as u64)));
    let mut table =
        Table::new(&["module", "kind", "rank", "scaling", "parameters", "‖A‖", "‖B‖", "‖ΔW‖", "others"]);
    for layer in &report.layers {
        table.row([
            layer.path.clone(),
            layer.kind.clone(),
            layer.rank.map_or_else(|| "-".to_owned(), |rank| rank.to_string()),
            number(layer.scaling),
            HumanCount(layer.parameters as u64).to_string(),
            number(layer.norm_a),
            number(layer.norm_b),
            number(layer.norm_update),
            others(layer),
        ]);
    }
    format!("{text}\n{}", table.text())
}

/// The norms of tensors that have no column of their own.
fn others(layer: &LayerReport) -> String {
    let others = layer.norms.iter().filter(|(end, _)| !is_factor(end, A) && !is_factor(end, B));
    let texts: Vec<String> = others.map(|(end, norm)| format!("‖{end}‖ {}", number(Some(*norm)))).collect();
    texts.join(", ")
}

/// `8 (24 layers), 16 (2 layers)`
fn histogram<'r, T: ToString + 'r>(counts: impl Iterator<Item = (&'r T, &'r usize)>) -> String {
    let entry = |(value, layers): (&T, &usize)| {
        let noun = if *layers == 1 { "layer" } else { "layers" };
        format!("{} ({layers} {noun})", value.to_string())
    };
    counts.map(entry).collect::<Vec<_>>().join(", ")
}
