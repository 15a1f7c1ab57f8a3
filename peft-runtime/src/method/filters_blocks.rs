//! Adapters on some blocks of a model only.

use super::adapter_config::AdapterConfig;
use super::settings::Method;
use crate::config::OneOrMany;
use crate::select::LayerIndices;

/// A method whose files have `layers_to_transform` and `layers_pattern`.
pub trait FiltersBlocks: Method {}

impl<M: FiltersBlocks> AdapterConfig<M> {
    /// Adapts only the blocks with these numbers.
    #[must_use]
    pub fn with_layers_to_transform(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.blocks.layers_to_transform = Some(LayerIndices::Many(layers.into_iter().collect()));
        self
    }

    /// The names of the block lists that `layers_to_transform` counts in.
    #[must_use]
    pub fn with_layers_pattern<S: Into<String>>(mut self, containers: impl IntoIterator<Item = S>) -> Self {
        let containers = containers.into_iter().map(Into::into).collect();
        self.blocks.layers_pattern = Some(OneOrMany::Many(containers));
        self
    }
}
