//! The keys of a state dict: `base_model.model.PATH.lora_A.weight`.

/// What PEFT's two wrapper levels put before every path.
pub(super) const PREFIX: &str = "base_model.model.";

/// The config's file name.
pub(super) const CONFIG_FILE: &str = "adapter_config.json";

/// The weights' file name.
pub(super) const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The name of the adapter that lies in the folder itself and not in one of its own.
pub(super) const DEFAULT_ADAPTER: &str = "default";

/// A key as files have it.
pub(super) fn with_prefix(key: &str) -> String {
    format!("{PREFIX}{key}")
}

/// A key without the prefix, which models that were injected by PEFT's low-level interface do not write; DoRA's lengths
/// under the one name that PEFT writes.
pub(super) fn canonical(key: &str) -> &str {
    let key = key.strip_prefix(PREFIX).unwrap_or(key);
    match key.strip_suffix(".weight") {
        Some(stem) if stem.ends_with(".lora_magnitude_vector") => stem,
        _ => key,
    }
}
