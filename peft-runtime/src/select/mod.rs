//! Which modules a config selects: target names and patterns over dotted paths, with PEFT's rules.

mod cost;
mod layers;
mod pattern;
mod selector;
mod targets;

pub(crate) use layers::{LayerFilter, LayerIndices};
pub(crate) use pattern::Pattern;
pub(crate) use selector::{Decision, Selector, proper_suffixes, unmatched_exclusions, unmatched_names};
pub use targets::TargetModules;
pub(crate) use targets::glob_regex;
