//! An adapter under the names that its base model has for the modules.

mod config;
mod experts;
mod layer;
mod single;

use std::collections::BTreeMap;

use super::Base;
use crate::error::{AdapterFileError, Error, Result};
use crate::method::{BASE_LAYER_PATHS, PeftConfig};
use crate::store::prefix_search::fitting_prefixes;
use crate::store::stored_contents::StoredContents;

use experts::FusedExperts;

/// The adapter with every module under the base model's name for it. Names that the base model has stay; another is one that
/// differs in wrapping modules only (`model`, `language_model`, …). A module that the base model lacks keeps its name.
///
/// # Errors
/// If a module may be several of the base model's, or if all that are missing have one other beginning there.
pub(super) fn to_base(
    config: PeftConfig,
    contents: StoredContents,
    base: &Base,
) -> Result<(PeftConfig, StoredContents)> {
    let (config, contents) = single::split(config, contents, base)?;
    let is_known =
        |key: &str| module_of(&config, key).is_none_or(|module| base.has_module(&base.placed(module)));
    if contents.keys().into_iter().all(is_known) {
        return Ok((config, contents));
    }
    let mut renames: BTreeMap<String, String> = BTreeMap::new();
    let mut missing: Vec<String> = Vec::new();
    let FusedExperts { gone, parameters, tensors } =
        experts::fuse(&config, &contents, base).map_err(|error| contents.of_weights(error))?;
    for key in contents.keys() {
        let Some(module) = module_of(&config, key).filter(|module| !gone.contains(*module)) else { continue };
        if renames.contains_key(module) || base.has_module(&base.placed(module)) {
            continue;
        }
        match base.other_name(key, module).map_err(|error| contents.of_weights(error.into()))? {
            Some(name) => {
                renames.insert(module.to_owned(), name);
            }
            None if config.method().split_key(key).is_some() => missing.push(module.to_owned()),
            None => {}
        }
    }
    missing.dedup();
    let paths = missing.iter().map(String::as_str).collect();
    let rules = fitting_prefixes(&paths, &base.module_paths()).unwrap_or_default();
    if let Some((from, to)) = rules.into_iter().next() {
        let (module, modules) = (missing.first().cloned().unwrap_or_default(), missing.len());
        let error = AdapterFileError::OtherNames { module, modules, from, to };
        return Err(contents.of_weights(Error::from(error)));
    }
    if renames.is_empty() && gone.is_empty() {
        return Ok((config, contents));
    }
    let of_key = |key: &str| {
        let module = module_of(&config, key)?;
        Some(format!("{}{}", renames.get(module)?, key.strip_prefix(module)?))
    };
    let layers = contents.keys().into_iter().filter_map(|key| config.method().split_key(key));
    let layers = layers.map(|(path, _)| path.to_owned()).filter(|path| !gone.contains(path)).collect();
    let fitted = config::renamed(&config, &layers, &renames, &parameters)?;
    let is_gone = |key: &str| module_of(&config, key).is_some_and(|module| gone.contains(module));
    let contents = if gone.is_empty() { contents } else { contents.replaced(&is_gone, tensors)? };
    let contents = contents.renamed(&|key| of_key(key).unwrap_or_else(|| key.to_owned()))?;
    Ok((fitted, contents))
}

/// The shape of a parameter of the module that an adapter calls `path`, if it is one of the base model's.
pub(super) fn shape_of<'b>(base: &'b Base, path: &str, parameter: &str) -> Option<&'b [usize]> {
    let shape = |module: &str| base.shapes.get(&format!("{module}.{parameter}")).map(Vec::as_slice);
    shape(&base.placed(path)).or_else(|| {
        let other = base.other_name(path, path).ok().flatten()?;
        shape(&other)
    })
}

/// The module that a key belongs to, a beginning of the key.
fn module_of<'k>(config: &PeftConfig, key: &'k str) -> Option<&'k str> {
    let layer = config.method().split_key(key).map(|(path, _)| path);
    let mut module = layer.or_else(|| key.rsplit_once('.').map(|(path, _)| path))?;
    // PEFT wraps the module of bare parameters once for each, and modules that train in full.
    let wrappers = || BASE_LAYER_PATHS.into_iter().chain(["original_module", "modules_to_save"]);
    while let Some(outer) = wrappers().find_map(|inner| module.strip_suffix(inner)?.strip_suffix('.')) {
        module = outer;
    }
    Some(module)
}
