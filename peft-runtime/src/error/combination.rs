//! Why several adapters cannot become one.

use super::words;
use crate::path::ModulePath;

/// A request to combine adapters that cannot be carried out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CombinationError {
    /// An option has no value of that name.
    #[error("`{name}` is not a `{option}`{}", words::did_you_mean(.nearest, .known))]
    UnknownName {
        /// PEFT's name of the option: `combination_type` or `majority_sign_method`.
        option: &'static str,
        /// The name as written.
        name: String,
        /// Similar names.
        nearest: Vec<String>,
        /// All names that the option can have.
        known: Vec<String>,
    },

    /// The list of adapters is empty.
    #[error("the list of adapters to combine is empty; name at least one")]
    NoParts,

    /// An adapter has a weight that is NaN or infinite.
    #[error("the weight of adapter `{adapter}` is {weight}; it must be a finite number")]
    Weight {
        /// The adapter.
        adapter: String,
        /// Its weight.
        weight: f64,
    },

    /// The adapters are not all of one method.
    #[error(
        "adapter `{adapter}` uses {method}, and the first adapter uses {first}; combine only adapters of one method"
    )]
    Methods {
        /// The adapter whose method differs from the first one's.
        adapter: String,
        /// Its `peft_type`.
        method: String,
        /// That of the first adapter.
        first: String,
    },

    /// The type prunes, and the options do not say how much.
    #[error("`{combination}` prunes, and needs a `density`: the share of elements that it keeps")]
    MissingDensity {
        /// The `combination_type`.
        combination: &'static str,
    },

    /// The type scales up what it keeps, but is told to keep nothing.
    #[error("`{combination}` divides by the `density`, which is 0; it must be above 0")]
    ZeroDensity {
        /// The `combination_type`.
        combination: &'static str,
    },

    /// The sum would have a larger rank than the update of a layer can have.
    #[error(
        "the combined adapter would have rank {rank}, and the update of `{path}` has at most {most}; give an `svd_rank` \
         of at most {most}"
    )]
    RankOverUpdate {
        /// The layer.
        path: ModulePath,
        /// The rank asked for, or the largest of the adapters' ranks.
        rank: usize,
        /// The smaller side of the layer's update as a matrix.
        most: usize,
    },
}
