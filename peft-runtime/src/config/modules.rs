//! The config fields that select modules.

use serde::{Deserialize, Serialize};

use super::common::ConfigFault;
use super::unset::unless_unset;
use crate::path::ModulePath;
use crate::select::{LayerIndices, TargetModules};

/// Which modules are adapted, left as they are, or trained in full.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ModuleFields {
    #[serde(rename = "target_modules", default)]
    pub(crate) targets: Option<TargetModules>,
    #[serde(rename = "exclude_modules", default, deserialize_with = "unless_unset")]
    pub(crate) exclude: Option<TargetModules>,
    #[serde(default, deserialize_with = "unless_unset")]
    pub(crate) modules_to_save: Option<Vec<String>>,
}

impl ModuleFields {
    /// The fields of one config that selects the modules of all these configs, which are those at `paths`.
    pub(crate) fn combined<'a>(
        all: &[(&Self, &BlockFields)],
        paths: impl Iterator<Item = &'a ModulePath>,
    ) -> (Self, BlockFields) {
        let Some((first, first_blocks)) = all.first() else { return Default::default() };
        let mut saved: Vec<String> = Vec::new();
        for name in all.iter().flat_map(|(other, _)| other.modules_to_save.iter().flatten()) {
            if !saved.contains(name) {
                saved.push(name.clone());
            }
        }
        let modules_to_save = if saved.is_empty() { first.modules_to_save.clone() } else { Some(saved) };
        let alike = |(other, blocks): &(&Self, &BlockFields)| {
            (&other.targets, &other.exclude, *blocks) == (&first.targets, &first.exclude, *first_blocks)
        };
        if all.iter().all(alike) {
            return (Self { modules_to_save, ..(*first).clone() }, (*first_blocks).clone());
        }
        let filters = |(other, blocks): &(&Self, &BlockFields)| {
            other.exclude.is_some() || blocks.layers_to_transform.is_some()
        };
        let targets = match all.iter().map(|(other, _)| other.targets.clone()).collect::<Option<Vec<_>>>() {
            Some(targets) if !all.iter().any(filters) => TargetModules::union(targets),
            // Filters of one config would rule out modules of another: the modules are named one by one.
            _ => TargetModules::names(paths.map(|path| path.as_str().to_owned())),
        };
        (Self { targets: Some(targets), exclude: None, modules_to_save }, BlockFields::default())
    }
}

/// Which blocks of a model are adapted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct BlockFields {
    #[serde(default)]
    pub(crate) layers_to_transform: Option<LayerIndices>,
    #[serde(default, deserialize_with = "unless_unset")]
    pub(crate) layers_pattern: Option<OneOrMany>,
}

/// A string or a list of strings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "it is neither a name nor a list of names")]
pub(crate) enum OneOrMany {
    /// One string.
    One(String),
    /// A list.
    Many(Vec<String>),
}

impl BlockFields {
    pub(crate) fn containers(&self) -> Option<&[String]> {
        match &self.layers_pattern {
            Some(OneOrMany::One(one)) => Some(std::slice::from_ref(one)),
            Some(OneOrMany::Many(many)) => Some(many),
            None => None,
        }
    }

    /// What is wrong with combining the filter with the targets.
    pub(crate) fn fault(&self, targets: Option<&TargetModules>) -> Option<ConfigFault> {
        let has_pattern = self.containers().is_some_and(|names| !names.is_empty());
        match (targets, &self.layers_to_transform) {
            (Some(TargetModules::Regex(_) | TargetModules::AllLinear), Some(_)) => Some((
                "layers_to_transform",
                "it only works with a list of target names; a pattern can name the blocks itself".to_owned(),
            )),
            (_, None) if has_pattern => {
                Some(("layers_pattern", "it does nothing without `layers_to_transform`".to_owned()))
            }
            _ => None,
        }
    }
}
