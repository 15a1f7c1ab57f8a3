//! Configs that are made out of a config: for what a model declares, for other ranks, for sums.

use std::collections::BTreeMap;

use super::LoraConfig;
use crate::ModulePath;
use crate::config::modules::{LayerFields, ModuleFields};
use crate::config::{LoraInit, PatternMap, default_targets};
use crate::select::{TargetModules, glob_regex};

/// The pattern that matches one path alone.
fn anchored(path: &str) -> String {
    format!("^{}", glob_regex(path))
}

impl LoraConfig {
    /// The config with the targets that the model declares, or that its type is known for.
    pub(crate) fn completed(&self, declared: Option<TargetModules>, model_type: Option<&str>) -> Self {
        if !self.target_parameters().is_empty() {
            // Parameters alone, as in PEFT.
            return self.clone().with_targets(Vec::<String>::new());
        }
        let targets = declared.or_else(|| model_type.and_then(default_targets::lora));
        let modules =
            ModuleFields { targets: self.modules.targets.clone().or(targets), ..self.modules.clone() };
        Self { modules, ..self.clone() }
    }

    /// The config at twice the rank with the same scaling, for the base model as it was before the init changed it.
    pub(crate) fn doubled(&self) -> Self {
        let factor = if self.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
        Self {
            rank: 2 * self.rank,
            alpha: factor * self.alpha,
            rank_pattern: self
                .rank_pattern
                .iter()
                .map(|(pattern, rank)| (pattern.to_owned(), 2 * rank))
                .collect(),
            alpha_pattern: self
                .alpha_pattern
                .iter()
                .map(|(pattern, alpha)| (pattern.to_owned(), factor * alpha))
                .collect(),
            init: LoraInit::Default,
            loftq_config: None,
            ..self.clone()
        }
    }

    /// The config with these ranks at these paths, of which the most frequent is the default.
    pub(crate) fn with_ranks(mut self, ranks: &BTreeMap<&str, usize>) -> Self {
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        ranks.values().for_each(|rank| *counts.entry(*rank).or_default() += 1);
        if let Some((rank, _)) = counts.into_iter().max_by_key(|(_, count)| *count) {
            self.rank = rank;
        }
        let others = ranks.iter().filter(|(_, rank)| **rank != self.rank);
        self.rank_pattern = others.map(|(path, rank)| (anchored(path), *rank)).collect();
        self
    }

    /// The config with these ranks, with the most frequent one as alpha and no other settings that scale or that change
    /// the base model.
    pub(crate) fn plain(&self, ranks: &BTreeMap<&str, usize>) -> Self {
        let ranked = self.clone().with_ranks(ranks);
        #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
        let alpha = ranked.rank as f64;
        Self {
            alpha,
            alpha_pattern: PatternMap::default(),
            use_rslora: false,
            loftq_config: None,
            eva_config: None,
            init: LoraInit::Default,
            ..ranked
        }
    }

    /// The config for exactly these layers, each with its rank and alpha.
    pub(crate) fn with_sizes(self, layers: &[(&ModulePath, usize, f64)]) -> Self {
        let ranks = layers.iter().filter(|(_, rank, _)| *rank != self.rank);
        let alphas = layers.iter().filter(|(_, _, alpha)| *alpha != self.alpha);
        let rank_pattern = ranks.map(|(path, rank, _)| (anchored(path.as_str()), *rank)).collect();
        let alpha_pattern = alphas.map(|(path, _, alpha)| (anchored(path.as_str()), *alpha)).collect();
        let targets = Some(TargetModules::names(layers.iter().map(|(path, ..)| path.as_str())));
        let modules = ModuleFields { targets, exclude: None, ..self.modules };
        Self { rank_pattern, alpha_pattern, modules, layers: LayerFields::default(), ..self }
    }

    /// The config of a sum of adapters with these configs, with a scaling of 1 at every rank.
    pub(crate) fn combined<'a>(
        configs: &[&Self],
        rank: usize,
        other_ranks: &[(ModulePath, usize)],
        paths: impl Iterator<Item = &'a ModulePath>,
    ) -> Self {
        let first = configs.first().copied().cloned().unwrap_or_default();
        let all: Vec<_> = configs.iter().map(|config| (&config.modules, Some(&config.layers))).collect();
        let (modules, layers) = ModuleFields::combined(&all, paths);
        #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
        Self {
            rank,
            alpha: rank as f64,
            rank_pattern: other_ranks.iter().map(|(path, rank)| (anchored(path.as_str()), *rank)).collect(),
            alpha_pattern: other_ranks
                .iter()
                .map(|(path, rank)| (anchored(path.as_str()), *rank as f64))
                .collect(),
            init: LoraInit::Default,
            loftq_config: None,
            modules,
            layers,
            ..first
        }
    }

    /// The config as it is written once the model has said which modules it means and how their weights lie.
    pub(crate) fn resolved(&self, targets: TargetModules, fan_in_fan_out: bool) -> Self {
        let modules = ModuleFields { targets: Some(targets), ..self.modules.clone() };
        Self { modules, fan_in_fan_out, ..self.clone() }
    }
}
