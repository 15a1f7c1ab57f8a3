//! The groups of fields that the configs of several methods share, in the format of `adapter_config.json`.

mod combine_options;
mod common;
mod modules;
mod pattern_map;
mod token_indices;
mod unset;

pub(crate) use combine_options::Merge;
pub use combine_options::{CombinationType, CombineOptions, MajoritySign};
pub use common::{Bias, CommonFields};
pub(crate) use common::{
    ConfigFault, as_number, finite_fault, large_rank_fault, probability_fault, rank_fault, yes,
};
pub(crate) use modules::{BlockFields, ModuleFields, OneOrMany};
pub use pattern_map::PatternMap;
pub(crate) use pattern_map::{as_numbers, unmatched_sizes};
pub use token_indices::TokenIndices;
pub(crate) use token_indices::tokens_or_nothing;
pub(crate) use unset::{is_unset, number_or_zero, switch, truth, unless_unset};
