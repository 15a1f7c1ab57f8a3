//! The config of IA3: <https://arxiv.org/abs/2205.05638>.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::common::{CommonFields, ConfigFault, ConfigFields};
use super::default_targets;
use super::modules::{ModuleFields, shared_methods};
use crate::ModulePath;
use crate::error::Result;
use crate::select::TargetModules;

/// The config of an IA3 adapter: one vector a layer, which scales its output or, on feed-forward layers, its input.
///
/// ```
/// use peft_runtime::Ia3Config;
///
/// let config = Ia3Config::new().with_targets(["k_proj", "v_proj", "down_proj"]).with_feedforward(["down_proj"]);
/// assert_eq!(Ia3Config::from_json(&config.to_json()?)?, config);
/// # Ok::<(), peft_runtime::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ia3Config {
    #[serde(rename = "feedforward_modules", default)]
    feedforward: Option<TargetModules>,
    #[serde(rename = "init_ia3_weights", default = "yes")]
    init: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(skip)]
    seed: u64,
    #[serde(flatten)]
    modules: ModuleFields,
    #[serde(flatten)]
    common: CommonFields,
}

fn yes() -> bool {
    true
}

impl Default for Ia3Config {
    fn default() -> Self {
        Self::new()
    }
}

impl Ia3Config {
    /// A config with PEFT's defaults. The feed-forward layers have to be named, if only as an empty list, unless the model
    /// declares them.
    pub fn new() -> Self {
        Self {
            feedforward: None,
            init: true,
            fan_in_fan_out: false,
            seed: 0,
            modules: ModuleFields::default(),
            common: CommonFields::default(),
        }
    }

    shared_methods!();

    /// Those of the targets whose input is scaled instead of their output; an empty list for none.
    #[must_use]
    pub fn with_feedforward(mut self, modules: impl Into<TargetModules>) -> Self {
        self.feedforward = Some(modules.into());
        self
    }

    /// Whether the vectors start as ones; random ones, which change the output, are meant for tests.
    #[must_use]
    pub fn with_init(mut self, ones: bool) -> Self {
        self.init = ones;
        self
    }

    /// Those of the targets whose input is scaled.
    pub fn feedforward(&self) -> Option<&TargetModules> {
        self.feedforward.as_ref()
    }

    /// Whether the vectors start as ones.
    pub fn starts_as_ones(&self) -> bool {
        self.init
    }

    /// Whether the adapted linear layers store their weights as `[in, out]`.
    pub fn fan_in_fan_out(&self) -> bool {
        self.fan_in_fan_out
    }

    /// The config with the targets and feed-forward layers that the model declares, or that its type is known for.
    pub(crate) fn completed(
        &self,
        declared: Option<(TargetModules, TargetModules)>,
        model_type: Option<&str>,
    ) -> Self {
        let known = declared.or_else(|| model_type.and_then(default_targets::ia3));
        let Some((targets, feedforward)) = known else { return self.clone() };
        let targets = self.modules.targets.clone().unwrap_or(targets);
        let feedforward = self.feedforward.clone().unwrap_or_else(|| feedforward.among(&targets));
        let modules = ModuleFields { targets: Some(targets), ..self.modules.clone() };
        Self { modules, feedforward: Some(feedforward), ..self.clone() }
    }

    /// The config of a sum of adapters with these configs.
    pub(crate) fn combined<'a>(configs: &[&Self], paths: impl Iterator<Item = &'a ModulePath>) -> Self {
        let first = configs.first().copied().cloned().unwrap_or_default();
        let all: Vec<_> = configs.iter().map(|config| (&config.modules, None)).collect();
        let (modules, _) = ModuleFields::combined(&all, paths);
        let feedforward = configs.iter().map(|config| config.feedforward.clone()).collect::<Option<Vec<_>>>();
        Self { feedforward: feedforward.map(TargetModules::union), modules, ..first }
    }

    /// The config as it is written once the model has said which modules it means and how their weights lie.
    pub(crate) fn resolved(
        &self,
        targets: TargetModules,
        fan_in_fan_out: bool,
        feedforward: TargetModules,
    ) -> Self {
        let modules = ModuleFields { targets: Some(targets), ..self.modules.clone() };
        Self { modules, fan_in_fan_out, feedforward: Some(feedforward), ..self.clone() }
    }
}

impl ConfigFields for Ia3Config {
    const PEFT_TYPE: &'static str = "IA3";

    fn unimplemented_fields() -> Vec<(&'static str, Value)> {
        Vec::new()
    }

    fn faults(&self) -> Vec<ConfigFault> {
        let mut faults = self.common.faults();
        if let (Some(TargetModules::Names(targets)), Some(TargetModules::Names(feedforward))) =
            (self.targets(), &self.feedforward)
        {
            let is_target = |name: &&String| {
                targets.iter().any(|target| ModulePath::from(target.as_str()).ends_with(name))
            };
            let strangers = feedforward.iter().filter(|name| !is_target(name));
            faults.extend(
                strangers.map(|name| ("feedforward_modules", format!("`{name}` is none of the targets"))),
            );
        }
        faults
    }

    fn common_mut(&mut self) -> &mut CommonFields {
        &mut self.common
    }
}
