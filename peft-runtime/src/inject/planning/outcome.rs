//! The outcome of a selection: names that match nothing, nothing left to adapt, and the names that are saved.

use std::collections::BTreeSet;

use super::planner::Planner;
use crate::error::Fault;
use crate::inject::plan::{Origin, PlannedContent};
use crate::module::Item;
use crate::path::ModulePath;
use crate::schema::nearest_names;
use crate::select::{TargetModules, proper_suffixes, unmatched_names};

impl Planner<'_> {
    /// Names in a list of targets that match the end of no path.
    pub(super) fn unmatched_targets(&self) -> Vec<String> {
        let TargetModules::Names(names) = self.targets else { return Vec::new() };
        unmatched_names(names, self.items.iter().filter_map(Item::path).map(ModulePath::as_str))
    }

    /// Refuses a selection that names nothing, or, from the caller, names something that does not exist.
    pub(super) fn check_outcome(&mut self, unmatched_targets: &[String]) {
        let nothing = !self.contents.values().any(PlannedContent::adapts);
        if self.origin == Origin::Caller || nothing {
            for target in unmatched_targets {
                let nearest = nearest_names(target, self.layer_names(target).iter().map(String::as_str));
                self.faults.push(Fault::UnmatchedTarget { target: target.clone(), nearest });
            }
        }
        if nothing && self.faults.is_empty() {
            let targets = self.targets;
            let filters = self.method.selection().describe_filters();
            let reason = match (self.excluded, self.unmatched) {
                _ if targets.is_empty() => "the list of targets is empty".to_owned(),
                (1.., 0) => format!("every module is ruled out by {filters}"),
                (0, _) if filters.is_empty() => format!("no module matches {targets}"),
                (_, _) => format!("no module matches {targets} together with {filters}"),
            };
            self.faults.push(Fault::NothingMatched { reason });
        }
    }

    /// The ends of layer paths that have as many segments as `target`.
    pub(super) fn layer_names(&self, target: &str) -> BTreeSet<String> {
        let segments = target.split('.').count();
        self.carriers()
            .map(|(path, _)| {
                let all: Vec<&str> = path.segments().collect();
                all[all.len().saturating_sub(segments)..].join(".")
            })
            .collect()
    }

    /// The targets as they are saved: `all-linear` becomes the names it stood for.
    pub(super) fn resolved_targets(&self) -> TargetModules {
        match self.targets {
            TargetModules::AllLinear => {
                let paths = self.items.iter().filter_map(Item::path);
                let (adapted, others): (Vec<_>, Vec<_>) = paths.partition(|path| self.is_adapted(path));
                let full = || adapted.iter().map(|path| path.as_str().to_owned()).collect();
                TargetModules::Names(match self.method.shortens_targets() {
                    true => shortest_names(&adapted, &others),
                    false => full(),
                })
            }
            targets => targets.clone(),
        }
    }
}

/// How many names a list may have before it is shortened.
const LONG_LIST: usize = 20;

/// The shortest ends of paths that name the same modules and no others.
fn shortest_names(paths: &[&ModulePath], others: &[&ModulePath]) -> BTreeSet<String> {
    let full: BTreeSet<String> = paths.iter().map(|path| path.as_str().to_owned()).collect();
    if full.len() < LONG_LIST {
        return full;
    }
    let mut names: BTreeSet<String> = BTreeSet::new();
    for path in &full {
        let suffixes: Vec<&str> = proper_suffixes(path).collect();
        if suffixes.iter().any(|suffix| names.contains(*suffix)) {
            continue;
        }
        let shortest =
            suffixes.into_iter().rev().find(|suffix| !others.iter().any(|other| other.ends_with(suffix)));
        names.insert(shortest.unwrap_or(path).to_owned());
    }
    names
}
