//! The plan of an injection: what each layer of a model gets.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::copied_bias::CopiedBias;
use super::report::UnmatchedPattern;
use crate::adapter::{AdapterMethod, Built, LayerSettings, Site, TensorSource};
use crate::error::Result;
use crate::path::ModulePath;

/// Where a config comes from, which decides how strictly it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Written by the caller: a name that matches nothing is a mistake.
    Caller,
    /// Read from a file: shared configs name modules that not every model has.
    File,
    /// Read from a file, to replace the adapter of that name.
    Swap,
}

/// What an injection will do. Making and committing an adapter follow it and decide nothing.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) adapter: String,
    pub(crate) method: Arc<dyn AdapterMethod>,
    /// What layers get; a layer that gets nothing is absent.
    pub(super) layers: BTreeMap<ModulePath, PlannedLayer>,
    pub(crate) unmatched_targets: Vec<String>,
    pub(crate) unmatched_patterns: Vec<UnmatchedPattern>,
    /// Where files store the adapters of bare parameters.
    pub(super) stored_paths: BTreeMap<ModulePath, ModulePath>,
    /// The blocks that the model gets first, by their numbers in the current list.
    pub(super) replication: Option<Vec<usize>>,
    /// Whether the adapter is held in f32 on layers in half precision.
    pub(super) autocasts: bool,
}

/// What one layer gets.
#[derive(Debug, Default)]
pub(super) struct PlannedLayer {
    pub(super) content: Option<PlannedContent>,
    /// Whether the layer's own bias trains as well.
    pub(super) trains_bias: bool,
}

/// What an adapter will have on one layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum PlannedContent {
    /// The state of its method, with these settings.
    Adapter(LayerSettings),
    /// The rows of these tokens.
    Tokens(Vec<u32>),
    /// The rows of another layer, which shares its weight with this one.
    TiedTokens(ModulePath),
    /// The adapter of another layer, whose weight is also this one's, with this scaling.
    TiedAdapter(ModulePath, Option<f64>),
    /// A full copy of the layer's parameters.
    Copy,
    /// The copy of another layer's weight, which is also this one's.
    TiedCopy(ModulePath),
}

impl PlannedContent {
    /// Whether it is an adapter rather than a copy.
    pub(super) fn adapts(&self) -> bool {
        !matches!(self, Self::Copy | Self::TiedCopy(_))
    }
}

impl Plan {
    /// The plan of an adapter that is held in f32 on layers in half precision, or as those are.
    pub(crate) fn with_autocasts(self, autocasts: bool) -> Self {
        Self { autocasts, ..self }
    }

    pub(super) fn content(&self, path: &ModulePath) -> Option<&PlannedContent> {
        self.layers.get(path)?.content.as_ref()
    }

    /// The layers that get an adapter.
    pub(crate) fn adapted(&self) -> impl Iterator<Item = &ModulePath> {
        let adapts = |layer: &PlannedLayer| layer.content.as_ref().is_some_and(PlannedContent::adapts);
        self.layers.iter().filter(move |(_, layer)| adapts(layer)).map(|(path, _)| path)
    }

    /// Whether the layer at `path` gets an adapter.
    pub(crate) fn adapts(&self, path: &ModulePath) -> bool {
        self.content(path).is_some_and(PlannedContent::adapts)
    }

    /// The layer that has what the layer at `path` gets, because both have one weight.
    pub(super) fn owner(&self, path: &ModulePath) -> Option<&ModulePath> {
        match self.content(path)? {
            PlannedContent::TiedTokens(owner)
            | PlannedContent::TiedAdapter(owner, _)
            | PlannedContent::TiedCopy(owner) => Some(owner),
            PlannedContent::Adapter(_) | PlannedContent::Tokens(_) | PlannedContent::Copy => None,
        }
    }

    /// The scaling of the adapter that the layer at `path` gets from another one.
    pub(super) fn tied_scaling(&self, path: &ModulePath) -> Option<f64> {
        match self.content(path)? {
            PlannedContent::TiedAdapter(_, scaling) => *scaling,
            _ => None,
        }
    }

    /// Whether the adapter gets a copy of the layer at `path`.
    pub(crate) fn copies(&self, path: &ModulePath) -> bool {
        self.content(path) == Some(&PlannedContent::Copy)
    }

    /// Whether rows of the layer at `path` train.
    pub(crate) fn has_tokens(&self, path: &ModulePath) -> bool {
        matches!(self.content(path), Some(PlannedContent::Tokens(_) | PlannedContent::TiedTokens(_)))
    }

    /// Whether merging the adapter of the layer at `path` may change the layer's bias.
    pub(crate) fn changes_bias(&self, path: &ModulePath) -> bool {
        matches!(self.content(path), Some(PlannedContent::Adapter(settings)) if settings.changes_bias)
    }

    /// Whether the bias of the layer at `path` trains as well.
    pub(super) fn trains_bias(&self, path: &ModulePath) -> bool {
        self.layers.get(path).is_some_and(|layer| layer.trains_bias)
    }

    /// The adapter of the layer at the site; `None` if the layer gets none that is built on its own.
    pub(crate) fn build(&self, site: &Site<'_>, source: &mut dyn TensorSource) -> Result<Option<Built>> {
        match self.content(site.path) {
            Some(PlannedContent::Adapter(settings)) => self.method.build(site, settings, source).map(Some),
            Some(PlannedContent::Tokens(tokens)) => self.method.build_tokens(site, tokens, source).map(Some),
            // What another layer has is made after it.
            _ => Ok(None),
        }
    }

    /// Where files store the adapter of the layer at `path`.
    pub(crate) fn stored_path<'p>(&'p self, path: &'p ModulePath) -> &'p ModulePath {
        self.stored_paths.get(path).unwrap_or(path)
    }

    /// The last part of the key under which the bias of the base layer at `path` is stored, unless it is copied.
    pub(super) fn bias_key(&self, path: &ModulePath) -> &'static str {
        if self.adapts(path) { "base_layer.bias" } else { "bias" }
    }

    /// Where files have the bias of the layer at `path`, if it is copied.
    pub(super) fn copied_bias(&self, path: &ModulePath) -> Option<CopiedBias> {
        self.copies(path).then(|| CopiedBias::of(&self.method.selection(), path))
    }
}
