//! The keys of a file in order: by the model that they are for, by module, and by what their tensors are.

use std::collections::BTreeMap;

use super::component::{self, Component};
use super::key::{self, Part};
use super::update::wrong;
use crate::error::{Result, StateDictError};
use crate::store::formats::Source;

/// The keys of one module by what their tensors are.
pub(super) type ModuleKeys = BTreeMap<Part, String>;

/// The modules of each part of a file, by the names that they have there.
pub(super) type Components = BTreeMap<Component, BTreeMap<String, ModuleKeys>>;

/// Puts the keys of a file in order.
pub(super) fn components(source: &Source) -> Result<Components> {
    let mut components = Components::new();
    for key in source.names() {
        let Some((module, part)) = key::split(key) else { return Err(wrong(key, key::unknown_end(key))) };
        let (component, module) = component::split(module);
        let module = match component.flat {
            true => module.to_owned(),
            // Today's names of modules and those from before may stand next to each other.
            false => super::names::current_spelling(module),
        };
        let keys = components.entry(component).or_default().entry(module).or_default();
        if let Some(first) = keys.insert(part, key.to_owned()) {
            return Err(StateDictError::DuplicateKey { first, second: key.to_owned() }.into());
        }
    }
    Ok(components)
}
