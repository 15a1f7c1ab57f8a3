//! The config that `#[peft(lora(…))]` declares.

use super::config::LoraConfig;
use crate::config::PatternMap;
use crate::declared::Declared;
use crate::schema::Schema;
use crate::select::glob_regex;

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
}
