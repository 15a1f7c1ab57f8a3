//! What a method gives one layer.

use std::sync::Arc;

use candle_core::Tensor;

use super::Adapter;

/// What a method gives one layer, decided when the injection is planned.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LayerSettings {
    /// The rank, if the method has ranks.
    pub rank: Option<usize>,
    /// The factor that scales the adapter's part, if the method has one.
    pub scaling: Option<f64>,
    /// Whether merging may change the layer's bias.
    pub changes_bias: bool,
}

impl LayerSettings {
    /// A layer that gets no rank and no scaling, and whose bias merging does not change.
    pub fn new() -> Self {
        Self::default()
    }

    /// With this rank and scaling.
    #[must_use]
    pub fn with_size(mut self, rank: usize, scaling: f64) -> Self {
        (self.rank, self.scaling) = (Some(rank), Some(scaling));
        self
    }

    /// Whether merging may change the layer's bias.
    #[must_use]
    pub fn with_changed_bias(mut self, changes: bool) -> Self {
        self.changes_bias = changes;
        self
    }
}

/// The adapter of one layer, and what becomes of the layer.
pub struct Built {
    /// The adapter.
    pub adapter: Arc<dyn Adapter>,
    /// The weight that the layer has from now on, if the method takes something out of it or quantises it.
    pub weight: Option<Tensor>,
}

impl Built {
    /// An adapter that leaves the layer as it is.
    pub fn new(adapter: Arc<dyn Adapter>) -> Self {
        Self { adapter, weight: None }
    }
}
