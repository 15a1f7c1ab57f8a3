//! Patterns of an adapter's config that match none of its layers.

use super::StoredAdapter;
use super::skeleton::Skeleton;
use crate::error::Result;
use crate::inject::{Origin, Plan, UnmatchedPattern, plan};

impl StoredAdapter {
    /// Patterns of the config for single layers that match none of the file's layers, and have no effect.
    ///
    /// # Errors
    /// If the tensors do not fit the config.
    pub fn unmatched_patterns(&self) -> Result<Vec<UnmatchedPattern>> {
        let skeleton = Skeleton::of(&[self], None)?;
        let method = self.explicit_method();
        let plan = plan(&skeleton, method.as_ref(), self.name(), Origin::File);
        Ok(of_adapted_layers(&plan.map_err(|error| self.of_config(error))?))
    }
}

/// The patterns that match nothing, without those of modules that are not adapted: the file does not know these.
pub(in crate::store) fn of_adapted_layers(plan: &Plan) -> Vec<UnmatchedPattern> {
    let all = plan.unmatched_patterns.iter();
    all.filter(|unmatched| unmatched.field != "exclude_modules").cloned().collect()
}
