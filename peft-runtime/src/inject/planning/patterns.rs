//! Patterns of a config that match nothing.

use super::planner::Planner;
use crate::error::Fault;
use crate::inject::plan::Origin;
use crate::inject::report::UnmatchedPattern;
use crate::module::Item;
use crate::path::ModulePath;
use crate::schema::{Schema, nearest_names};
use crate::select::{TargetModules, glob_regex, unmatched_exclusions};

impl Planner<'_> {
    /// Patterns for single layers that match no adapted layer, and exclusions that match no module; from the caller they are
    /// faults.
    pub(super) fn unmatched_patterns(
        &mut self,
        exclude: Option<&TargetModules>,
        schema: &Schema,
    ) -> Vec<UnmatchedPattern> {
        let items = self.items;
        let paths = || items.iter().filter_map(Item::path).filter(|path| !path.is_root());
        let adapted: Vec<&str> =
            paths().filter(|path| self.is_adapted(path)).map(ModulePath::as_str).collect();
        if adapted.is_empty() {
            // That is a fault of its own, unless only rows of tokens train.
            return Vec::new();
        }
        let exclusions = unmatched_exclusions(exclude, paths().map(ModulePath::as_str));
        let sizes = self.method.unmatched_patterns(&adapted);
        let mut unmatched = Vec::new();
        match sizes {
            Ok(found) => unmatched.extend(found),
            Err(fault) => self.note(fault),
        }
        match exclusions {
            Ok(found) => unmatched.extend(found.into_iter().map(|name| (EXCLUDE, name))),
            Err(fault) => self.note(fault),
        }
        if unmatched.is_empty() {
            return Vec::new();
        }
        // A field that declares a rank may be `None` in this model.
        let declared: Vec<String> =
            schema.declared_ranks().iter().map(|(path, _)| format!("^{}", glob_regex(path))).collect();
        let unmatched: Vec<UnmatchedPattern> = unmatched
            .into_iter()
            .filter(|(_, pattern)| !declared.contains(pattern))
            .map(|(field, pattern)| UnmatchedPattern { field, pattern })
            .collect();
        if self.origin == Origin::Caller {
            for UnmatchedPattern { field, pattern } in &unmatched {
                let plain =
                    pattern.trim_start_matches(['^', '.', '*']).trim_end_matches('$').replace('\\', "");
                let names = self.layer_names(&plain);
                let nearest = nearest_names(&plain, names.iter().map(String::as_str));
                self.faults.push(Fault::UnmatchedPattern { field, pattern: pattern.clone(), nearest });
            }
        }
        unmatched
    }
}

/// The field that rules modules out.
pub(super) const EXCLUDE: &str = "exclude_modules";
