//! Configs derived from something else: from what a model declares, or from a config, for other ranks, for sums, or for
//! the base model as it was.

use std::collections::BTreeMap;

use super::config::{LoraConfig, LoraSettings};
use super::init::LoraInit;
use crate::config::{BlockFields, ModuleFields, PatternMap};
use crate::declared::Declared;
use crate::path::ModulePath;
use crate::schema::Schema;
use crate::select::{TargetModules, glob_regex};

/// The pattern that matches only one path.
fn anchored(path: &str) -> String {
    format!("^{}", glob_regex(path))
}

impl LoraConfig {
    /// The config that a model declares, with the ranks that fields of its schema declare.
    pub(crate) fn declared(declared: &Declared, schema: &Schema) -> Option<Self> {
        let lora = declared.lora?;
        let ranks = schema.declared_ranks().into_iter();
        // Anchored, so that a field's rank does not reach fields of the same name elsewhere.
        let patterns: PatternMap<usize> =
            ranks.map(|(path, rank)| (format!("^{}", glob_regex(&path)), rank)).collect();
        let config = Self::new(lora.rank, lora.alpha)
            .with_dropout(lora.dropout)
            .with_rslora(lora.rslora)
            .with_bias(lora.bias)
            .with_rank_pattern(patterns);
        Some(match declared.target_modules() {
            Some(targets) => config.with_targets(targets),
            None => config,
        })
    }

    /// The config with twice the rank and the same scaling, for the base model as it was before the init changed it.
    pub(super) fn doubled(&self) -> Self {
        let settings = &self.settings;
        let factor = if settings.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
        let ranks = settings.rank_pattern.iter();
        let alphas = settings.alpha_pattern.iter();
        self.with_settings(LoraSettings {
            rank: 2 * settings.rank,
            alpha: factor * settings.alpha,
            rank_pattern: ranks.map(|(pattern, rank)| (pattern.to_owned(), 2 * rank)).collect(),
            alpha_pattern: alphas.map(|(pattern, alpha)| (pattern.to_owned(), factor * alpha)).collect(),
            init: LoraInit::Default,
            loftq_config: None,
            ..settings.clone()
        })
    }

    /// The config with these ranks at these paths, of which the most frequent is the default.
    pub(super) fn with_ranks(mut self, ranks: &BTreeMap<&str, usize>) -> Self {
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        ranks.values().for_each(|rank| *counts.entry(*rank).or_default() += 1);
        if let Some((rank, _)) = counts.into_iter().max_by_key(|(_, count)| *count) {
            self.settings.rank = rank;
        }
        let others = ranks.iter().filter(|(_, rank)| **rank != self.settings.rank);
        self.settings.rank_pattern = others.map(|(path, rank)| (anchored(path), *rank)).collect();
        self
    }

    /// The config with these ranks and no other settings that scale or that change the base model. Alpha stays where it and the
    /// rank are the same on all layers; otherwise it is the most frequent rank.
    pub(super) fn plain(&self, ranks: &BTreeMap<&str, usize>) -> Self {
        let ranked = self.clone().with_ranks(ranks);
        let own = &self.settings;
        let is_uniform = own.alpha_pattern.is_empty() && ranks.values().all(|rank| *rank == own.rank);
        let keeps_alpha = is_uniform && !own.use_rslora && own.alpha != 0.0;
        #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
        let alpha = if keeps_alpha { own.alpha } else { ranked.settings.rank as f64 };
        ranked.with_settings(LoraSettings {
            alpha,
            alpha_pattern: PatternMap::default(),
            use_rslora: false,
            loftq_config: None,
            eva_config: None,
            init: LoraInit::Default,
            ..ranked.settings.clone()
        })
    }

    /// The config for exactly these layers, each with its rank and alpha.
    pub(super) fn with_sizes(mut self, layers: &[(&ModulePath, usize, f64)]) -> Self {
        let ranks = layers.iter().filter(|(_, rank, _)| *rank != self.settings.rank);
        let alphas = layers.iter().filter(|(_, _, alpha)| *alpha != self.settings.alpha);
        self.settings.rank_pattern = ranks.map(|(path, rank, _)| (anchored(path.as_str()), *rank)).collect();
        self.settings.alpha_pattern =
            alphas.map(|(path, _, alpha)| (anchored(path.as_str()), *alpha)).collect();
        let targets = Some(TargetModules::names(layers.iter().map(|(path, ..)| path.as_str())));
        self.modules = ModuleFields { targets, exclude: None, ..self.modules };
        self.blocks = BlockFields::default();
        self
    }

    /// The config of a sum of adapters with these configs, with a scaling of 1 at every rank and these settings otherwise.
    pub(super) fn combined<'a>(
        &self,
        configs: &[&Self],
        rank: usize,
        other_ranks: &[(ModulePath, usize)],
        paths: impl Iterator<Item = &'a ModulePath>,
    ) -> Self {
        let ranks = other_ranks.iter();
        #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
        let settings = LoraSettings {
            rank,
            alpha: rank as f64,
            rank_pattern: ranks.clone().map(|(path, rank)| (anchored(path.as_str()), *rank)).collect(),
            alpha_pattern: ranks.map(|(path, rank)| (anchored(path.as_str()), *rank as f64)).collect(),
            init: LoraInit::Default,
            loftq_config: None,
            ..self.settings.clone()
        };
        Self::for_combination(configs, settings, paths)
    }
}
