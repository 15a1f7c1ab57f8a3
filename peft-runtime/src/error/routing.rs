//! Why the rows of a batch cannot each have an adapter of their own.

use crate::path::ModulePath;

/// A model whose state does not allow an adapter for each row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoutingError {
    /// The model is in training mode.
    #[error("the model is in training mode; call `eval()` first")]
    Training,

    /// An adapter is merged into the weights, and so acts on every row.
    #[error("adapter `{adapter}` is merged into `{path}`; call `unmerge_adapters()` first")]
    Merged {
        /// The merged adapter.
        adapter: String,
        /// The first layer with it.
        path: ModulePath,
    },

    /// An adapter computes something that only whole batches can have.
    #[error("adapter `{adapter}` uses {form} on `{path}`, which only acts on whole batches")]
    WholeBatches {
        /// The adapter.
        adapter: String,
        /// What it uses: DoRA, for example.
        form: &'static str,
        /// The layer.
        path: ModulePath,
    },

    /// A row's adapter has no copy of a module that another one trains in full.
    #[error("adapter `{adapter}` has no copy of `{path}`, which adapter `{owner}` trains in full")]
    NoCopy {
        /// The adapter of the row.
        adapter: String,
        /// The module.
        path: ModulePath,
        /// The adapter that has a copy.
        owner: String,
    },
}
