//! One config for all methods: what a method sets itself, and what all of them share.

use serde::{Deserialize, Serialize};

use crate::config::{BlockFields, CommonFields, ModuleFields};
use crate::path::ModulePath;
use crate::select::TargetModules;

/// The config of an adapter of the method `M`, in the format of PEFT's `adapter_config.json`.
///
/// [`LoraConfig`](crate::LoraConfig) and the other configs are of this type; each adds the builders and getters of its
/// own method.
///
/// ```
/// use peft_runtime::LoraConfig;
///
/// let config = LoraConfig::new(8, 16.0).with_targets(["q_proj", "v_proj"]).with_modules_to_save(["classifier"]);
/// assert_eq!(LoraConfig::from_json(&config.to_json()?)?, config);
/// # Ok::<(), peft_runtime::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig<M> {
    // Flattened fields are read in this order, and `common` takes what the others leave.
    #[serde(flatten)]
    pub(super) settings: M,
    #[serde(skip)]
    pub(super) seed: u64,
    #[serde(flatten)]
    pub(super) modules: ModuleFields,
    #[serde(flatten)]
    pub(super) blocks: BlockFields,
    #[serde(flatten)]
    pub(super) common: CommonFields,
}

impl<M> AdapterConfig<M> {
    /// A config with these settings of the method, and with PEFT's defaults for the rest.
    pub fn of(settings: M) -> Self {
        Self {
            settings,
            seed: 0,
            modules: ModuleFields::default(),
            blocks: BlockFields::default(),
            common: CommonFields::default(),
        }
    }

    /// What the method itself sets.
    pub fn settings(&self) -> &M {
        &self.settings
    }

    /// The same with other settings of the method.
    #[must_use]
    pub fn with_settings(&self, settings: M) -> Self {
        Self {
            settings,
            seed: self.seed,
            modules: self.modules.clone(),
            blocks: self.blocks.clone(),
            common: self.common.clone(),
        }
    }

    /// The modules to adapt; without it, those that the model declares with `#[peft(target = "…")]`.
    #[must_use]
    pub fn with_targets(mut self, targets: impl Into<TargetModules>) -> Self {
        self.modules.targets = Some(targets.into());
        self
    }

    /// Modules that are not adapted although they are targets.
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
    /// The seed of a model's first adapter is also that of the model's own [`Dropout`](crate::nn::Dropout) layers.
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

    /// The modules to adapt, if the config names them.
    pub fn targets(&self) -> Option<&TargetModules> {
        self.modules.targets.as_ref()
    }

    /// Modules that are not adapted.
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

    /// The config with these modules if it names none itself; `None` if nothing is added.
    pub(super) fn with_default_targets(&self, targets: impl FnOnce() -> Option<TargetModules>) -> Option<Self>
    where
        M: Clone,
    {
        if self.targets().is_some() {
            return None;
        }
        let modules = ModuleFields { targets: targets(), ..self.modules.clone() };
        Some(Self { modules, ..self.clone() })
    }

    /// The config for the modules at `paths`, without filters, with full copies of `copied` if it names none itself.
    pub(super) fn for_modules<'p>(
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

    /// The config with full copies of the same modules as `other`.
    pub(super) fn copying_as(mut self, other: Self) -> Self {
        self.modules.modules_to_save = other.modules.modules_to_save;
        self
    }

    /// The config of a combination of adapters with these configs, which selects the modules of all of them: those at
    /// `paths`.
    pub fn for_combination<'a>(
        configs: &[&Self],
        settings: M,
        paths: impl Iterator<Item = &'a ModulePath>,
    ) -> Self {
        let all: Vec<_> = configs.iter().map(|config| (&config.modules, &config.blocks)).collect();
        let (modules, blocks) = ModuleFields::combined(&all, paths);
        let (seed, common) = match configs.first() {
            Some(first) => (first.seed, first.common.clone()),
            None => (0, CommonFields::default()),
        };
        Self { settings, seed, modules, blocks, common }
    }
}
