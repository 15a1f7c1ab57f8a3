//! The keys of a state dict: `base_model.model.PATH.lora_A.weight`.

use std::collections::BTreeMap;

use crate::adapter::AdapterMethod;
use crate::error::{Error, Result, StateDictError};

/// What PEFT's two wrapper levels put before every path.
pub(super) const PREFIX: &str = "base_model.model.";

/// The config's file name.
pub(super) const CONFIG_FILE: &str = "adapter_config.json";

/// The weights' file name.
pub(super) const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The name of the adapter that is stored in the folder itself, not in a folder of its own.
pub(super) const DEFAULT_ADAPTER: &str = "default";

/// A key as it is written in files.
pub(super) fn with_prefix(key: &str) -> String {
    format!("{PREFIX}{key}")
}

/// A key without the prefix, under the one name that the method has for it. Models injected through PEFT's low-level
/// interface write keys without the prefix.
pub(super) fn canonical<'k>(method: &dyn AdapterMethod, key: &'k str) -> &'k str {
    method.canonical_key(key.strip_prefix(PREFIX).unwrap_or(key))
}

/// The values under their canonical keys.
///
/// # Errors
/// If two keys mean the same tensor.
pub(super) fn by_canonical_key<'k, V>(
    method: &dyn AdapterMethod,
    values: impl IntoIterator<Item = (&'k String, V)>,
) -> Result<BTreeMap<&'k str, V>> {
    let mut named: BTreeMap<&str, (&str, V)> = BTreeMap::new();
    for (key, value) in values {
        let canonical = canonical(method, key);
        if let Some((other, _)) = named.get(canonical) {
            return Err(two_names(other, key));
        }
        named.insert(canonical, (key, value));
    }
    Ok(named.into_iter().map(|(key, (_, value))| (key, value)).collect())
}

/// Two keys, with and without PEFT's prefix for example, that mean the same tensor.
pub(super) fn two_names(first: &str, second: &str) -> Error {
    StateDictError::DuplicateKey { first: first.to_owned(), second: second.to_owned() }.into()
}

#[cfg(test)]
mod tests {
    use super::by_canonical_key;
    use crate::error::Result;
    use crate::method::LoraConfig;

    #[test]
    fn two_names_of_one_tensor_are_both_in_the_error() {
        let names = ["base_model.model.lin.lora_A.weight", "lin.lora_B.weight", "lin.lora_A.weight"];
        let keyed = |names: &[&str]| -> Result<Vec<(String, usize)>> {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let keyed = by_canonical_key(&LoraConfig::default(), names.iter().map(|name| (name, name.len())));
            keyed.map(|keyed| keyed.into_iter().map(|(key, length)| (key.to_owned(), length)).collect())
        };
        let expected = [("lin.lora_A.weight".to_owned(), 34), ("lin.lora_B.weight".to_owned(), 17)];
        assert_eq!(keyed(&names[..2]).unwrap(), expected);
        let error = keyed(&names).unwrap_err().to_string();
        assert!(error.contains(&format!("`{}` and `{}`", names[0], names[2])), "{error}");
    }
}
