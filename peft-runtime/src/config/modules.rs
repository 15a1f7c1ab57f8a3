//! The fields of all configs that say which modules they are for, and their builders.

use serde::{Deserialize, Serialize};

use super::common::ConfigFault;
use crate::ModulePath;
use crate::select::{LayerIndices, TargetModules};

/// Which modules are adapted, left alone, or trained in full.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ModuleFields {
    #[serde(rename = "target_modules", default)]
    pub(crate) targets: Option<TargetModules>,
    #[serde(rename = "exclude_modules", default)]
    pub(crate) exclude: Option<TargetModules>,
    #[serde(default)]
    pub(crate) modules_to_save: Option<Vec<String>>,
}

impl ModuleFields {
    /// The fields of one config that means the modules of all of them, which are those at `paths`.
    pub(super) fn combined<'a>(
        all: &[(&Self, Option<&LayerFields>)],
        paths: impl Iterator<Item = &'a ModulePath>,
    ) -> (Self, LayerFields) {
        let Some((first, first_layers)) = all.first() else { return Default::default() };
        let alike = |(other, layers): &(&Self, Option<&LayerFields>)| {
            (&other.targets, &other.exclude, layers) == (&first.targets, &first.exclude, first_layers)
        };
        if all.iter().all(alike) {
            return ((*first).clone(), first_layers.cloned().unwrap_or_default());
        }
        let filters = |(other, layers): &(&Self, Option<&LayerFields>)| {
            other.exclude.is_some() || layers.is_some_and(|layers| layers.layers_to_transform.is_some())
        };
        let targets = match all.iter().map(|(other, _)| other.targets.clone()).collect::<Option<Vec<_>>>() {
            Some(targets) if !all.iter().any(filters) => TargetModules::union(targets),
            // Filters of one config would rule out modules of another: the modules are named one by one.
            _ => TargetModules::names(paths.map(|path| path.as_str().to_owned())),
        };
        let modules_to_save = first.modules_to_save.clone();
        (Self { targets: Some(targets), exclude: None, modules_to_save }, LayerFields::default())
    }
}

/// Which blocks of a model are adapted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerFields {
    #[serde(default)]
    pub(crate) layers_to_transform: Option<LayerIndices>,
    #[serde(default)]
    pub(crate) layers_pattern: Option<OneOrMany>,
}

/// A string or a list of strings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    /// One string.
    One(String),
    /// A list.
    Many(Vec<String>),
}

impl LayerFields {
    pub(crate) fn containers(&self) -> Option<&[String]> {
        match &self.layers_pattern {
            Some(OneOrMany::One(one)) => Some(std::slice::from_ref(one)),
            Some(OneOrMany::Many(many)) => Some(many),
            None => None,
        }
    }

    /// What is wrong with the filter together with the targets.
    pub(crate) fn fault(&self, targets: Option<&TargetModules>) -> Option<ConfigFault> {
        let has_pattern = self.containers().is_some_and(|names| !names.is_empty());
        match (targets, &self.layers_to_transform) {
            (Some(TargetModules::Regex(_) | TargetModules::AllLinear), Some(_)) => Some((
                "layers_to_transform",
                "it goes with a list of target names; a pattern can name the blocks itself".to_owned(),
            )),
            (_, None) if has_pattern => {
                Some(("layers_pattern", "it does nothing without `layers_to_transform`".to_owned()))
            }
            _ => None,
        }
    }
}

/// The builders and readers of `modules`, `common` and `seed`, which every config has.
macro_rules! shared_methods {
    () => {
        /// The modules to adapt; without it, those that the model declares with `#[peft(target = "…")]`.
        #[must_use]
        pub fn with_targets(mut self, targets: impl Into<TargetModules>) -> Self {
            self.modules.targets = Some(targets.into());
            self
        }

        /// Modules to leave alone although they are targets.
        #[must_use]
        pub fn with_exclude_modules(mut self, modules: impl Into<TargetModules>) -> Self {
            self.modules.exclude = Some(modules.into());
            self
        }

        /// Modules that train in full, as a copy that belongs to the adapter (a classifier head, for example).
        #[must_use]
        pub fn with_modules_to_save<S: Into<String>>(mut self, modules: impl IntoIterator<Item = S>) -> Self {
            self.modules.modules_to_save = Some(modules.into_iter().map(Into::into).collect());
            self
        }

        /// The seed of the initial tensors and of dropout; 0 by default. It is not written to files.
        ///
        /// The seed of a model's first adapter is that of the model's own [`Dropout`](crate::nn::Dropout) layers, too.
        #[must_use]
        pub fn with_seed(mut self, seed: u64) -> Self {
            self.seed = seed;
            self
        }

        /// The task type that the file names, one of PEFT's.
        #[must_use]
        pub fn with_task_type(mut self, task_type: impl Into<String>) -> Self {
            self.common.task_type = Some(task_type.into());
            self
        }

        /// The base model that the file names.
        #[must_use]
        pub fn with_base_model(mut self, name_or_path: impl Into<String>) -> Self {
            self.common.base_model_name_or_path = Some(name_or_path.into());
            self
        }

        /// Reads the text of an `adapter_config.json`.
        ///
        /// # Errors
        /// If the text is not JSON, a switch that is on is not supported, or a value is invalid.
        pub fn from_json(text: &str) -> Result<Self> {
            super::from_json(text)
        }

        /// The text of the `adapter_config.json`: every field of PEFT 0.21.2, keys sorted.
        ///
        /// # Errors
        /// If a value has no JSON form.
        pub fn to_json(&self) -> Result<String> {
            super::to_json(self)
        }

        /// The config for the modules at `paths`, without filters, with full copies of `copied` if it names none itself.
        pub(crate) fn for_modules<'p>(
            mut self,
            paths: impl Iterator<Item = &'p str>,
            copied: impl IntoIterator<Item = String>,
        ) -> Self {
            let copied: Vec<String> = copied.into_iter().collect();
            self.modules = ModuleFields {
                targets: Some(TargetModules::names(paths)),
                exclude: None,
                modules_to_save: self.modules.modules_to_save.or((!copied.is_empty()).then_some(copied)),
            };
            self
        }

        /// The modules to adapt, if the config names them.
        pub fn targets(&self) -> Option<&TargetModules> {
            self.modules.targets.as_ref()
        }

        /// Modules to leave alone.
        pub fn exclude_modules(&self) -> Option<&TargetModules> {
            self.modules.exclude.as_ref()
        }

        /// Modules that train in full.
        pub fn modules_to_save(&self) -> &[String] {
            self.modules.modules_to_save.as_deref().unwrap_or_default()
        }

        /// The seed of the initial tensors and of dropout.
        pub fn seed(&self) -> u64 {
            self.seed
        }

        /// The fields that describe the adapter.
        pub fn common(&self) -> &CommonFields {
            &self.common
        }
    };
}

/// The builders and readers of `layers`.
macro_rules! layer_methods {
    () => {
        /// Adapts only the blocks with these numbers.
        #[must_use]
        pub fn with_layers_to_transform(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
            self.layers.layers_to_transform = Some(LayerIndices::Many(layers.into_iter().collect()));
            self
        }

        /// The names of the block lists that `layers_to_transform` counts in.
        #[must_use]
        pub fn with_layers_pattern<S: Into<String>>(
            mut self,
            containers: impl IntoIterator<Item = S>,
        ) -> Self {
            let containers = containers.into_iter().map(Into::into).collect();
            self.layers.layers_pattern = Some(super::modules::OneOrMany::Many(containers));
            self
        }

        pub(crate) fn layers_to_transform(&self) -> Option<&LayerIndices> {
            self.layers.layers_to_transform.as_ref()
        }

        pub(crate) fn layers_pattern(&self) -> Option<&[String]> {
            self.layers.containers()
        }
    };
}

pub(super) use {layer_methods, shared_methods};
