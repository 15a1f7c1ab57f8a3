//! Modules of a base model by what their paths have in common with those of adapters.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::AdapterFileError;

/// Modules that models are wrapped in: they may stand at the beginning of a path in an adapter and not in its base model, and
/// the other way round.
const WRAPPERS: [&str; 6] = ["_orig_mod", "base_model", "language_model", "model", "module", "transformer"];

/// The modules of a base model by their paths without wrappers.
#[derive(Debug)]
pub(super) struct BaseModules(BTreeMap<String, BTreeSet<String>>);

impl BaseModules {
    /// The modules at these paths.
    pub(super) fn of<'p>(paths: impl IntoIterator<Item = &'p str>) -> Self {
        let mut modules: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for path in paths {
            modules.entry(unwrapped(path).to_owned()).or_default().insert(path.to_owned());
        }
        Self(modules)
    }

    /// The one module of the base model that `module` can be, if its wrappers are not looked at.
    pub(super) fn other_name(&self, key: &str, module: &str) -> Result<Option<String>, AdapterFileError> {
        let Some(candidates) = self.0.get(unwrapped(module)) else { return Ok(None) };
        let mut names = candidates.iter();
        match (names.next(), names.next()) {
            (Some(one), None) => Ok(Some(one.clone())),
            (None, _) => Ok(None),
            _ => Err(AdapterFileError::Ambiguous {
                key: key.to_owned(),
                candidates: candidates.iter().cloned().collect(),
            }),
        }
    }
}

/// A path without the wrappers that it begins with; the last segment is never one.
fn unwrapped(mut path: &str) -> &str {
    while let Some((first, rest)) = path.split_once('.') {
        if !WRAPPERS.contains(&first) {
            break;
        }
        path = rest;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::{BaseModules, unwrapped};
    use crate::store::formats::Base;

    fn modules(names: &[&str]) -> BaseModules {
        let shapes = names.iter().map(|name| (format!("{name}.weight"), vec![2, 2])).collect();
        BaseModules::of(Base::of_shapes(shapes).module_paths())
    }

    #[test]
    fn wrappers_are_left_out_of_the_beginning_of_a_path() {
        assert_eq!(unwrapped("base_model.model.model.language_model.layers.0.q"), "layers.0.q");
        assert_eq!(unwrapped("vision_tower.model.layers.0.q"), "vision_tower.model.layers.0.q");
        assert_eq!(unwrapped("model"), "model");
    }

    #[test]
    fn a_module_has_another_name_only_if_there_is_exactly_one() {
        let of_llava = modules(&["language_model.model.layers.0.q", "vision_tower.encoder.layers.0.q"]);
        let name = |modules: &BaseModules, path: &str| modules.other_name("key", path);
        assert_eq!(
            name(&of_llava, "model.language_model.layers.0.q"),
            Ok(Some("language_model.model.layers.0.q".to_owned()))
        );
        assert_eq!(
            name(&of_llava, "model.vision_tower.encoder.layers.0.q"),
            Ok(Some("vision_tower.encoder.layers.0.q".to_owned()))
        );
        assert_eq!(name(&of_llava, "encoder.layers.0.q"), Ok(None));
        let two = modules(&["model.layers.0.q", "language_model.layers.0.q"]);
        let error = name(&two, "layers.0.q").unwrap_err().to_string();
        assert_eq!(error, "`key` may be `language_model.layers.0.q` or `model.layers.0.q` of the base model");
    }
}
