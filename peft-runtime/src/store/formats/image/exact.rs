//! Names and patterns that mean exactly the modules they are for, by PEFT's rules of matching.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::select::TargetModules;

/// The targets of an adapter on the modules at `paths`, of a model with `layers`: a list of names if that means no other one.
pub(super) fn targets<'l>(paths: &BTreeSet<&str>, layers: impl Iterator<Item = &'l str>) -> Result<Value> {
    let also_means = |layer: &str| {
        let mut ends = layer.match_indices('.').map(|(dot, _)| &layer[dot + 1..]);
        !paths.contains(layer) && ends.any(|end| paths.contains(end))
    };
    let mut layers = layers;
    let targets = match layers.any(also_means) {
        true => TargetModules::exactly(paths.iter().copied()),
        false => TargetModules::names(paths.iter().copied()),
    };
    Ok(serde_json::to_value(targets)?)
}

/// Numbers of modules as a config has them: the one that most have, and patterns for the others.
pub(super) fn numbers(values: &BTreeMap<&str, f64>) -> (f64, Value) {
    let mut counts: Vec<(f64, usize)> = Vec::new();
    for value in values.values() {
        match counts.iter_mut().find(|(known, _)| known == value) {
            Some((_, count)) => *count += 1,
            None => counts.push((*value, 1)),
        }
    }
    let most = counts.iter().fold((0.0, 0), |most, next| if next.1 > most.1 { *next } else { most });
    let others = values.iter().filter(|(_, value)| **value != most.0);
    let patterns: Map<String, Value> =
        others.map(|(path, value)| (pattern(path, values.keys().copied()), number(*value))).collect();
    (most.0, Value::Object(patterns))
}

/// A number without a fraction as an integer, as PEFT's files have them.
pub(super) fn number(value: f64) -> Value {
    const LARGEST: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "it has no fraction and fits")]
    if value.fract() == 0.0 && value.abs() < LARGEST { json!(value as i64) } else { json!(value) }
}

/// A pattern that matches only the module at `path` of all `adapted` ones.
fn pattern<'p>(path: &str, adapted: impl Iterator<Item = &'p str>) -> String {
    let mut others = adapted.filter(|other| *other != path);
    if others.any(|other| matches_end(path, other)) {
        return format!("^{}", fancy_regex::escape(path));
    }
    path.to_owned()
}

/// Whether `path`, read as a pattern in which a dot is any character, matches the end of `other` from a segment on.
fn matches_end(path: &str, other: &str) -> bool {
    let (pattern, other) = (path.as_bytes(), other.as_bytes());
    let Some(start) = other.len().checked_sub(pattern.len()) else { return false };
    let starts_segment = start == 0 || other.get(start - 1) == Some(&b'.');
    let mut pairs = pattern.iter().zip(other.get(start..).unwrap_or_default());
    starts_segment && pairs.all(|(wanted, found)| *wanted == b'.' || wanted == found)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::json;

    use super::{numbers, targets};

    #[test]
    fn a_path_that_ends_another_one_is_anchored() {
        let values =
            BTreeMap::from([("proj_out", 4.0), ("blocks.0.proj_out", 2.0), ("blocks.1.proj_out", 2.0)]);
        assert_eq!(numbers(&values), (2.0, json!({"^proj_out": 4})));
        let values = BTreeMap::from([("a.b", 1.5), ("c.d", 2.0), ("a_b", 2.0)]);
        assert_eq!(numbers(&values), (2.0, json!({"^a\\.b": 1.5})));
    }

    #[test]
    fn targets_are_names_unless_they_would_mean_more() {
        let paths = BTreeSet::from(["proj_out"]);
        assert_eq!(targets(&paths, ["proj_out", "other"].into_iter()).unwrap(), json!(["proj_out"]));
        assert_eq!(
            targets(&paths, ["proj_out", "blocks.0.proj_out"].into_iter()).unwrap(),
            json!("proj_out")
        );
    }
}
