//! Targets that are whole paths.

use std::sync::Arc;

use crate::ModulePath;
use crate::adapter::AdapterMethod;
use crate::module::{Injectable, leaves};
use crate::select::{TargetModules, proper_suffixes};

/// The method with targets that are whole paths, also where one of them is the end of another module's path.
pub(crate) fn exactly_targeted<M: Injectable + ?Sized>(
    model: &M,
    method: Arc<dyn AdapterMethod>,
) -> Arc<dyn AdapterMethod> {
    let Some(TargetModules::Names(names)) = method.selection().targets else { return method };
    let also_means = |path: &ModulePath| {
        !names.contains(path.as_str()) && proper_suffixes(path.as_str()).any(|suffix| names.contains(suffix))
    };
    if !leaves(model).iter().any(|(path, _)| also_means(path)) {
        return method;
    }
    let exact = TargetModules::exactly(names.iter().map(String::as_str));
    method.resolved(exact, false)
}
