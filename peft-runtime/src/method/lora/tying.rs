//! `ensure_weight_tying`: which of the config's modules mean the embedding and the output layer that has its weight.

use super::config::{LoraConfig, LoraSettings};
use crate::adapter::Shared;
use crate::config::ModuleFields;
use crate::error::Fault;
use crate::path::ModulePath;
use crate::select::{Pattern, TargetModules, proper_suffixes};

/// The names by which PEFT knows embeddings here, whatever the model calls its own.
const EMBEDDING_NAMES: [&str; 2] = ["embed_tokens", "lm_head"];

impl LoraConfig {
    /// Gives the output layer that has the embedding's weight what the embedding gets: the same factors, transposed, or the
    /// same full copy. The targets, or the modules to save, have to name `embed_tokens` or `lm_head`, as in PEFT.
    #[must_use]
    pub fn with_weight_tying(mut self, ties: bool) -> Self {
        self.settings.ensure_weight_tying = ties;
        self
    }

    /// Whether a tied output layer gets what the embedding gets.
    pub fn weight_tying(&self) -> bool {
        self.settings.ensure_weight_tying
    }
}

/// The config with the embedding in the place of the two, and what both get; `None` if neither is named. The rules are PEFT's.
pub(super) fn tied(
    config: &LoraConfig,
    embedding: &ModulePath,
    head: &ModulePath,
) -> Result<Option<(LoraConfig, Shared)>, Fault> {
    if config.modules_to_save().iter().any(|name| is_embedding(name)) {
        let names = with_embedding(config.modules_to_save().to_vec(), embedding, head)?;
        return Ok(Some((config.clone().with_modules_to_save(names), Shared::Copy)));
    }
    let targets = match config.targets() {
        Some(TargetModules::Names(names)) if names.iter().any(|name| is_embedding(name)) => {
            TargetModules::names(with_embedding(names.iter().cloned().collect(), embedding, head)?)
        }
        Some(TargetModules::Regex(pattern)) if means_embedding(pattern)? => {
            let own = format!("|^{}$)", fancy_regex::escape(embedding.as_str()));
            // A config that was saved has it already.
            match pattern.ends_with(&own) {
                true => TargetModules::regex(pattern),
                false => TargetModules::regex(format!("(?:{pattern}{own}")),
            }
        }
        _ => return Ok(None),
    };
    if config.use_dora() || config.init().changes_base() {
        let reason = "it shares factors, and neither DoRA's magnitudes nor weights that an init changed";
        return Err(Fault::Config { field: "ensure_weight_tying", reason: reason.to_owned() });
    }
    Ok(Some((config.clone().with_targets(targets), Shared::Adapter)))
}

/// The config for a file's layers at `paths` by themselves: the output layer has an adapter like any other.
pub(super) fn untied<'p>(config: LoraConfig, paths: impl Iterator<Item = &'p str>) -> LoraConfig {
    if !config.weight_tying() {
        return config;
    }
    let targets = match config.targets() {
        Some(TargetModules::Names(names)) => {
            let is_named =
                |path: &&str| names.contains(*path) || proper_suffixes(path).any(|end| names.contains(end));
            let others = paths.filter(|path| !is_named(path)).map(str::to_owned);
            Some(TargetModules::names(names.iter().cloned().chain(others)))
        }
        Some(_) => Some(TargetModules::exactly(paths)),
        None => None,
    };
    let modules = ModuleFields { targets, ..config.modules.clone() };
    let settings = LoraSettings { ensure_weight_tying: false, ..config.settings.clone() };
    LoraConfig { modules, ..config }.with_settings(settings)
}

fn is_embedding(name: &str) -> bool {
    EMBEDDING_NAMES.contains(&ModulePath::from(name).last())
}

fn means_embedding(pattern: &str) -> Result<bool, Fault> {
    let whole = Pattern::whole("target_modules", pattern)?;
    let matches = EMBEDDING_NAMES.iter().map(|name| whole.is_match(name)).collect::<Result<Vec<_>, _>>()?;
    Ok(matches.contains(&true))
}

/// The names with the embedding's path, and without the first that means the output layer.
fn with_embedding(
    mut names: Vec<String>,
    embedding: &ModulePath,
    head: &ModulePath,
) -> Result<Vec<String>, Fault> {
    if !names.iter().any(|name| name == embedding.as_str()) {
        names.push(embedding.as_str().to_owned());
    }
    for number in 0..names.len() {
        if Pattern::segments("target_modules", &names[number])?.is_match(head.as_str())? {
            names.remove(number);
            break;
        }
    }
    Ok(names)
}
