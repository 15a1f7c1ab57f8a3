//! Which bare parameters are adapted, and where files store their adapters.

use std::collections::BTreeMap;

use super::planner::{Planner, is_parameter};
use crate::error::Fault;
use crate::module::Item;
use crate::path::ModulePath;

impl Planner<'_> {
    /// Plans the bare parameters that the config names; returns the names that match none.
    pub(super) fn choose_parameters(&mut self, names: &[String]) -> Vec<String> {
        let mut unmatched = names.to_vec();
        let items = self.items;
        for item in items {
            let Item::Leaf { path, layer } = item else { continue };
            let Some(name) = names.iter().find(|name| path.ends_with(name)) else { continue };
            if is_parameter(*layer) {
                unmatched.retain(|other| other != name);
                if path.segments().count() == 1 {
                    let reason =
                        "a parameter of the model itself has no module that PEFT could name".to_owned();
                    self.faults.push(Fault::Tokens { path: path.clone(), reason });
                }
                self.choose_layer(path, *layer);
            } else if layer.describe().is_none() {
                unmatched.retain(|other| other != name);
                let (path, can_be_adapted) = (path.clone(), true);
                self.faults.push(Fault::PlainLayer { path, kind: "Weight", can_be_adapted });
            }
        }
        unmatched
    }

    /// Where files store the adapters of the bare parameters that get one.
    pub(super) fn stored_paths(&self) -> BTreeMap<ModulePath, ModulePath> {
        let parameters =
            self.carriers().filter(|(path, layer)| is_parameter(*layer) && self.is_adapted(path));
        stored_paths(parameters.map(|(path, _)| path))
    }
}

/// Where files store the adapters of bare parameters: PEFT wraps their module once for each, the first one innermost.
///
/// `parameters` are in model order.
pub(crate) fn stored_paths<'p>(
    parameters: impl IntoIterator<Item = &'p ModulePath>,
) -> BTreeMap<ModulePath, ModulePath> {
    let mut modules: BTreeMap<&str, Vec<&ModulePath>> = BTreeMap::new();
    for path in parameters {
        let module = path.as_str().rsplit_once('.').map(|(module, _)| module).unwrap_or_default();
        modules.entry(module).or_default().push(path);
    }
    let mut stored = BTreeMap::new();
    for (module, paths) in modules {
        for (place, path) in paths.iter().rev().enumerate() {
            stored.insert(
                (*path).clone(),
                ModulePath::from(format!("{module}{}", ".base_layer".repeat(place))),
            );
        }
    }
    stored
}
