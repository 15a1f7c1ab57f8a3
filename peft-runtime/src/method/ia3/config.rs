//! The config of IA3: <https://arxiv.org/abs/2205.05638>.

use serde::{Deserialize, Serialize};

use crate::config::{ConfigFault, switch, truth, yes};
use crate::error::{Fault, Result};
use crate::method::AdapterConfig;
use crate::path::ModulePath;
use crate::select::{Pattern, TargetModules};

/// The config of an IA3 adapter: one vector per layer, which scales its output or, on feed-forward layers, its input.
///
/// ```
/// use peft_runtime::Ia3Config;
///
/// let config = Ia3Config::new().with_targets(["k_proj", "v_proj", "down_proj"]).with_feedforward(["down_proj"]);
/// assert_eq!(Ia3Config::from_json(&config.to_json()?)?, config);
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub type Ia3Config = AdapterConfig<Ia3Settings>;

/// The settings that only IA3's config has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ia3Settings {
    #[serde(rename = "feedforward_modules", default)]
    pub(super) feedforward: Option<TargetModules>,
    #[serde(rename = "init_ia3_weights", default = "yes", deserialize_with = "truth")]
    pub(super) init: bool,
    #[serde(default, deserialize_with = "switch")]
    pub(super) fan_in_fan_out: bool,
}

impl Default for Ia3Settings {
    fn default() -> Self {
        Self { feedforward: None, init: true, fan_in_fan_out: false }
    }
}

impl Ia3Config {
    /// A config with PEFT's defaults. The feed-forward layers have to be named, if only as an empty list, unless the model
    /// declares them.
    pub fn new() -> Self {
        Self::default()
    }

    /// The targets whose input is scaled instead of their output; an empty list for none.
    #[must_use]
    pub fn with_feedforward(mut self, modules: impl Into<TargetModules>) -> Self {
        self.settings.feedforward = Some(modules.into());
        self
    }

    /// Whether the vectors start as ones; random ones, which change the output, are meant for tests.
    #[must_use]
    pub fn with_init(mut self, ones: bool) -> Self {
        self.settings.init = ones;
        self
    }

    /// The targets whose input is scaled.
    pub fn feedforward(&self) -> Option<&TargetModules> {
        self.settings.feedforward.as_ref()
    }

    /// Whether the vectors start as ones.
    pub fn starts_as_ones(&self) -> bool {
        self.settings.init
    }

    /// Whether the adapted linear layers store their weights as `[in, out]`.
    pub fn fan_in_fan_out(&self) -> bool {
        self.settings.fan_in_fan_out
    }

    /// The config of a sum of adapters with these configs.
    pub(super) fn combined<'a>(configs: &[&Self], paths: impl Iterator<Item = &'a ModulePath>) -> Self {
        let first = configs.first().map(|first| first.settings.clone()).unwrap_or_default();
        let feedforward =
            configs.iter().map(|config| config.feedforward().cloned()).collect::<Option<Vec<_>>>();
        let settings = Ia3Settings { feedforward: feedforward.map(TargetModules::union), ..first };
        Self::for_combination(configs, settings, paths).with_feedforward_among_targets()
    }

    /// The config of the layers at `paths`, each with whether its input is scaled.
    pub(super) fn exactly(self, paths: &[(&ModulePath, bool)]) -> Self {
        let feedforward = paths.iter().filter(|(_, is_feedforward)| *is_feedforward);
        let feedforward: Vec<&str> = feedforward.map(|(path, _)| path.as_str()).collect();
        let feedforward = match feedforward.as_slice() {
            [] => TargetModules::names(Vec::<String>::new()),
            some => TargetModules::exactly(some.iter().copied()),
        };
        self.for_modules(paths.iter().map(|(path, _)| path.as_str()), None).with_feedforward(feedforward)
    }

    /// The config with those of its targets as feed-forward layers that its feed-forward names mean: PEFT refuses names that
    /// are none of the targets'.
    pub(super) fn with_feedforward_among_targets(self) -> Self {
        let (Some(TargetModules::Names(targets)), Some(TargetModules::Names(feedforward))) =
            (self.targets(), self.feedforward())
        else {
            return self;
        };
        if feedforward.is_subset(targets) {
            return self;
        }
        let meant = |target: &&String| feedforward.iter().any(|name| target.ends_with(name.as_str()));
        let meant: Vec<String> = targets.iter().filter(meant).cloned().collect();
        self.with_feedforward(TargetModules::names(meant))
    }

    /// Whether the layer's input is scaled: names match the end of the path as plain text, as in PEFT.
    pub(super) fn is_feedforward(&self, path: &ModulePath) -> Result<bool, Fault> {
        Ok(match self.feedforward() {
            Some(TargetModules::Names(names)) => {
                names.iter().any(|name| path.as_str().ends_with(name.as_str()))
            }
            Some(TargetModules::Regex(pattern)) => {
                Pattern::whole("feedforward_modules", pattern)?.is_match(path.as_str())?
            }
            Some(TargetModules::AllLinear) | None => false,
        })
    }

    pub(super) fn feedforward_faults(&self) -> Vec<ConfigFault> {
        const FIELD: &str = "feedforward_modules";
        let mut faults = Vec::new();
        if let (Some(TargetModules::Names(targets)), Some(TargetModules::Names(feedforward))) =
            (self.targets(), self.feedforward())
        {
            let is_target = |name: &&String| {
                targets.iter().any(|target| ModulePath::from(target.as_str()).ends_with(name))
            };
            let strangers = feedforward.iter().filter(|name| !is_target(name));
            faults.extend(strangers.map(|name| (FIELD, format!("`{name}` is not one of the targets"))));
        }
        if self.feedforward() == Some(&TargetModules::AllLinear) {
            faults.push((FIELD, "they have to be named".to_owned()));
        }
        faults
    }
}
