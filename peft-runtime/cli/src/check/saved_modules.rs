//! Whether an adapter has all parameters of the modules that its config has as trained in full.

use std::collections::{BTreeMap, BTreeSet};

use peft_runtime::NameMap;
use serde_json::Value;

use super::adapter_file::AdapterFile;
use super::keys::Key;

/// The base model's parameters that `modules_to_save` names and the adapter does not have, in a sentence.
///
/// An adapter without any of them is judged without its base model.
pub fn missing_parameters(
    adapter: &AdapterFile,
    shapes: &BTreeMap<String, Vec<usize>>,
    names: &NameMap,
) -> Option<String> {
    let saved = adapter.field("modules_to_save").and_then(Value::as_array)?;
    let saved: Vec<&str> = saved.iter().filter_map(Value::as_str).collect();
    let own: BTreeSet<String> = adapter
        .tensors
        .iter()
        .map(|tensor| Key::parse(&tensor.key))
        .map(|key| format!("{}.{}", names.module_of(&key.path), key.parameter))
        .collect();
    let is_wanted = |name: &&String| {
        let is_parameter = name.ends_with(".weight") || name.ends_with(".bias");
        is_parameter && saved.iter().any(|module| is_in(name, module))
    };
    let wanted: Vec<&String> = shapes.keys().filter(is_wanted).collect();
    let has_some = wanted.iter().any(|name| own.contains(*name));
    let missing = wanted.into_iter().find(|name| !own.contains(*name)).filter(|_| has_some)?;
    Some(format!("the adapter has no `{missing}`, which `modules_to_save` names"))
}

/// Whether a parameter is in a module of this name; PEFT compares the end of the module's path, letter by letter.
fn is_in(parameter: &str, module: &str) -> bool {
    parameter.match_indices('.').any(|(at, _)| parameter[..at].ends_with(module))
}
