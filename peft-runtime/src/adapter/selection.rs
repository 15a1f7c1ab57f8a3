//! Which modules a config names.

use crate::config::TokenIndices;
use crate::path::ModulePath;
use crate::select::{LayerIndices, TargetModules};

/// Which modules a config names; [`of`](Self::of) makes one from targets, and the other fields can be set.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection<'c> {
    /// The modules to adapt; `None` leaves it to the model's own declaration.
    pub targets: Option<&'c TargetModules>,
    /// Modules that are not adapted.
    pub exclude: Option<&'c TargetModules>,
    /// Modules of which the adapter trains a copy.
    pub modules_to_save: &'c [String],
    pub(crate) layers_to_transform: Option<&'c LayerIndices>,
    pub(crate) layers_pattern: Option<&'c [String]>,
    pub(crate) tokens: Option<&'c TokenIndices>,
    pub(crate) parameters: &'c [String],
    pub(crate) replication: &'c [(usize, usize)],
    /// Whether an output layer gets what the embedding with the same weight gets.
    pub(crate) ties: bool,
}

impl<'c> Selection<'c> {
    /// The modules that `targets` names, or those that the model declares.
    pub fn of(targets: Option<&'c TargetModules>) -> Self {
        Self { targets, ..Self::default() }
    }
}

impl Selection<'_> {
    /// The module that is copied with the layer at `path` in it: the outermost one that `modules_to_save` names.
    pub(crate) fn copied_module(&self, path: &ModulePath) -> Option<ModulePath> {
        let text = path.as_str();
        let ends = text.match_indices('.').map(|(dot, _)| dot).chain([text.len()]);
        let named = |module: &&str| self.modules_to_save.iter().any(|entry| module.ends_with(entry.as_str()));
        ends.map(|end| &text[..end]).find(named).map(ModulePath::from)
    }

    /// The settings that rule modules out, for messages; empty if there are none.
    pub(crate) fn describe_filters(&self) -> String {
        let mut filters = Vec::new();
        if let Some(exclude) = self.exclude {
            filters.push(format!("`exclude_modules` = {exclude}"));
        }
        if !self.modules_to_save.is_empty() {
            filters.push(format!("`modules_to_save` = [{}]", self.modules_to_save.join(", ")));
        }
        if let Some(layers) = self.layers_to_transform {
            filters.push(format!("`layers_to_transform` = {layers}"));
        }
        if let Some(containers) = self.layers_pattern {
            filters.push(format!("`layers_pattern` = [{}]", containers.join(", ")));
        }
        filters.join(" and ")
    }
}
