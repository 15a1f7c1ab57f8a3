//! The config of an adapter whose modules get other names.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::layer::Sizes;
use crate::config::PatternMap;
use crate::error::Result;
use crate::method::PeftConfig;

/// Fields that hold patterns with numbers.
const PATTERNS: [&str; 2] = ["alpha_pattern", RANKS];
const RANKS: &str = "rank_pattern";

/// Fields that narrow down what the targets mean.
const FILTERS: [&str; 3] = ["exclude_modules", "layers_pattern", "layers_to_transform"];

/// The config that means the modules of `layers`, with the same numbers for each, under their other names, and bare parameters of
/// these sizes.
pub(super) fn renamed(
    config: &PeftConfig,
    layers: &BTreeSet<String>,
    renames: &BTreeMap<String, String>,
    parameters: &BTreeMap<String, Sizes>,
) -> Result<PeftConfig> {
    let mut value: Value = serde_json::from_str(&config.to_json()?)?;
    let Some(fields) = value.as_object_mut() else { return Ok(config.clone()) };
    let pairs: Vec<(&str, &str)> = layers
        .iter()
        .map(|path| (path.as_str(), renames.get(path).map_or(path.as_str(), String::as_str)))
        .collect();
    rename_targets(fields, &pairs, !parameters.is_empty());
    let stabilised = fields.get("use_rslora") == Some(&Value::Bool(true));
    for name in PATTERNS {
        let number =
            |sizes: &Sizes| if name == RANKS { sizes.rank_as_number() } else { sizes.alpha(stabilised) };
        let own = parameters.iter().map(|(path, sizes)| (path.as_str(), number(sizes))).collect();
        rename_patterns(fields, name, &pairs, &own)?;
    }
    let fronts: BTreeSet<(&str, &str)> = renames.iter().map(|(old, new)| fronts(old, new)).collect();
    for name in ["modules_to_save", "target_parameters"] {
        for entry in fields.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(renamed) = entry.as_str().and_then(|path| with_other_front(path, &fronts)) {
                *entry = Value::String(renamed);
            }
        }
    }
    drop_renamed_parameters(fields, renames);
    if let Some(Value::Object(tokens)) = fields.get_mut("trainable_token_indices") {
        let old = std::mem::take(tokens);
        tokens.extend(
            old.into_iter().map(|(path, rows)| (with_other_front(&path, &fronts).unwrap_or(path), rows)),
        );
    }
    if !parameters.is_empty() {
        let known = fields.get("target_parameters").and_then(Value::as_array).cloned().unwrap_or_default();
        let all = known.into_iter().chain(parameters.keys().map(|path| json!(path))).collect();
        fields.insert("target_parameters".to_owned(), Value::Array(all));
        // A bare parameter has no input that could be dropped; dropout acts in training only.
        fields.insert("lora_dropout".to_owned(), json!(0.0));
    }
    PeftConfig::from_json(&value.to_string())
}

/// The config of an adapter on `layers`, and on the layers of `added` with these sizes in place of the bare parameters that
/// `is_gone` means.
pub(super) fn with_layers(
    config: &PeftConfig,
    layers: &BTreeSet<String>,
    added: &BTreeMap<String, Sizes>,
    is_gone: impl Fn(&str) -> bool,
) -> Result<PeftConfig> {
    let mut value: Value = serde_json::from_str(&config.to_json()?)?;
    let Some(fields) = value.as_object_mut() else { return Ok(config.clone()) };
    let stabilised = fields.get("use_rslora") == Some(&Value::Bool(true));
    let pairs: Vec<(&str, &str)> = layers.iter().map(|path| (path.as_str(), path.as_str())).collect();
    for (name, default) in PATTERNS.into_iter().zip(["lora_alpha", "r"]) {
        let number =
            |sizes: &Sizes| if name == RANKS { sizes.rank_as_number() } else { sizes.alpha(stabilised) };
        let default = fields.get(default).and_then(Value::as_f64).unwrap_or(f64::NAN);
        let known: PatternMap<f64> = match fields.get(name).filter(|value| value.is_object()) {
            Some(value) => serde_json::from_value(value.clone())?,
            None => PatternMap::default(),
        };
        let mut is_said = true;
        for (path, sizes) in added {
            is_said = is_said && known.value(name, path, default)?.to_bits() == number(sizes).to_bits();
        }
        if !is_said {
            let own = added.iter().map(|(path, sizes)| (path.as_str(), number(sizes))).collect();
            rename_patterns(fields, name, &pairs, &own)?;
        }
    }
    if let Some(Value::Array(parameters)) = fields.get_mut("target_parameters") {
        parameters.retain(|name| !name.as_str().is_some_and(&is_gone));
    }
    let paths: Vec<&str> = layers.iter().chain(added.keys()).map(String::as_str).collect();
    fields.insert("target_modules".to_owned(), json!(paths));
    for name in FILTERS.iter().filter(|name| fields.contains_key(**name)).collect::<Vec<_>>() {
        fields.insert((*name).to_owned(), Value::Null);
    }
    PeftConfig::from_json(&value.to_string())
}

/// Takes out the weights of layers with another name, which are targets as layers.
fn drop_renamed_parameters(fields: &mut Map<String, Value>, renames: &BTreeMap<String, String>) {
    let Some(Value::Array(parameters)) = fields.get_mut("target_parameters") else { return };
    let means = |name: &str, path: &str| {
        let weight = format!("{path}.weight");
        weight.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let is_lost = |name: &str| renames.iter().any(|(old, new)| means(name, old) && !means(name, new));
    parameters.retain(|name| !name.as_str().is_some_and(is_lost));
}

/// Names every layer by its path, unless a list of names means them all as it is, and nothing that is gone.
fn rename_targets(fields: &mut Map<String, Value>, pairs: &[(&str, &str)], some_are_gone: bool) {
    let is_filtered = FILTERS.iter().any(|name| fields.get(*name).is_some_and(|value| !value.is_null()));
    let means_all = |names: &[Value]| {
        let ends = |path: &str, name: &str| {
            path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        pairs.iter().all(|(_, new)| names.iter().filter_map(Value::as_str).any(|name| ends(new, name)))
    };
    match fields.get("target_modules") {
        Some(Value::Array(names)) if !some_are_gone && !is_filtered && means_all(names) => {}
        Some(Value::Array(_) | Value::String(_)) => {
            let paths: Vec<&str> = pairs.iter().map(|(_, new)| *new).collect();
            fields.insert("target_modules".to_owned(), json!(paths));
            for name in FILTERS.iter().filter(|name| fields.contains_key(**name)).collect::<Vec<_>>() {
                fields.insert((*name).to_owned(), Value::Null);
            }
        }
        _ => {}
    }
}

/// Gives every layer the number that it had, if the patterns mean other layers now, and bare parameters their own.
fn rename_patterns(
    fields: &mut Map<String, Value>,
    name: &'static str,
    pairs: &[(&str, &str)],
    parameters: &BTreeMap<&str, f64>,
) -> Result<()> {
    let Some(value) = fields.get(name).filter(|value| value.is_object()) else { return Ok(()) };
    let patterns: PatternMap<f64> = serde_json::from_value(value.clone())?;
    let number = |path: &str| -> Result<Option<f64>> {
        let number = patterns.value(name, path, f64::NAN)?;
        Ok((!number.is_nan()).then_some(number))
    };
    let paths = || pairs.iter().map(|(_, new)| *new).chain(parameters.keys().copied());
    // A pattern matches the ends of paths.
    let only = |path: &str| {
        let ends = |other: &str| other.strip_suffix(path).is_some_and(|front| front.ends_with('.'));
        if paths().any(ends) { format!("^{}", escaped(path)) } else { escaped(path) }
    };
    let own = parameters.iter().map(|(path, number)| (only(path), json_number(*number)));
    let (mut exact, mut same): (Map<String, Value>, bool) = (own.collect(), parameters.is_empty());
    for (old, new) in pairs {
        let own = number(old)?;
        same &= own == number(new)?;
        if let Some(own) = own {
            exact.insert(only(new), json_number(own));
        }
    }
    if !same {
        fields.insert(name.to_owned(), Value::Object(exact));
    }
    Ok(())
}

/// A whole number as one, which ranks have to be.
fn json_number(number: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "the range is looked at before")]
    if number.fract() == 0.0 && number.abs() < 1e15 { json!(number as i64) } else { json!(number) }
}

/// A path as a pattern that matches it, and paths that end in it.
fn escaped(path: &str) -> String {
    path.replace('.', r"\.")
}

/// What two paths do not have in common at their ends.
fn fronts<'p>(old: &'p str, new: &'p str) -> (&'p str, &'p str) {
    let (mut a, mut b) = (old, new);
    loop {
        let (rest_a, last_a) = a.rsplit_once('.').unwrap_or(("", a));
        let (rest_b, last_b) = b.rsplit_once('.').unwrap_or(("", b));
        if last_a != last_b || a.is_empty() || b.is_empty() {
            return (a, b);
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// `path` with the front that goes with its own, if it has one.
fn with_other_front(path: &str, fronts: &BTreeSet<(&str, &str)>) -> Option<String> {
    let mut renamed = fronts.iter().filter(|(old, _)| !old.is_empty()).filter_map(|(old, new)| {
        let rest = path.strip_prefix(old)?.strip_prefix('.')?;
        Some(if new.is_empty() { rest.to_owned() } else { format!("{new}.{rest}") })
    });
    renamed.next()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::{Value, json};

    use super::renamed;
    use crate::method::PeftConfig;

    /// The fields after the layers have lost `model.` from their paths.
    fn without_model(fields: &Value) -> Value {
        let config = PeftConfig::from_json(&fields.to_string()).unwrap();
        let layers: BTreeSet<String> =
            ["model.layers.0.q", "model.layers.1.q"].into_iter().map(str::to_owned).collect();
        let renames: BTreeMap<String, String> =
            layers.iter().map(|path| (path.clone(), path.replace("model.", ""))).collect();
        let config = renamed(&config, &layers, &renames, &BTreeMap::new()).unwrap();
        serde_json::from_str(&config.to_json().unwrap()).unwrap()
    }

    #[test]
    fn lists_of_ends_stay_and_patterns_become_paths() {
        let names = without_model(&json!({"peft_type": "LORA", "target_modules": ["q"]}));
        assert_eq!(names["target_modules"], json!(["q"]));
        let pattern = without_model(&json!({"peft_type": "LORA", "target_modules": r"model\.layers\.\d\.q"}));
        assert_eq!(pattern["target_modules"], json!(["layers.0.q", "layers.1.q"]));
        let filtered = without_model(
            &json!({"peft_type": "LORA", "target_modules": ["q"], "layers_to_transform": [0, 1]}),
        );
        assert_eq!(filtered["layers_to_transform"], Value::Null);
    }

    #[test]
    fn every_layer_keeps_its_numbers() {
        let fields = json!({"peft_type": "LORA", "target_modules": ["q"],
            "rank_pattern": {"model.layers.1.q": 4}, "alpha_pattern": {"layers.0.q": 3.5}});
        let found = without_model(&fields);
        assert_eq!(found["rank_pattern"], json!({r"layers\.1\.q": 4}));
        assert_eq!(found["alpha_pattern"], json!({"layers.0.q": 3.5}));
    }
}
