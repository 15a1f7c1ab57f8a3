//! Fields of LoRA's config that are not implemented.

use serde_json::{Map, Value, json};

use crate::config::is_unset;

/// Fields that every method based on LoRA's config has and that are not implemented here, each with the value it has
/// when it is off.
pub(crate) fn unimplemented_lora_fields() -> Vec<(&'static str, Value)> {
    vec![
        ("alora_invocation_tokens", Value::Null),
        ("arrow_config", Value::Null),
        ("corda_config", Value::Null),
        ("kasa_config", Value::Null),
        ("lora_ga_config", Value::Null),
        ("megatron_config", Value::Null),
        ("megatron_core", json!("megatron.core")),
        ("monteclora_config", Value::Null),
        ("qalora_group_size", json!(16)),
        ("use_bdlora", Value::Null),
        ("use_qalora", json!(false)),
        ("velora_config", Value::Null),
    ]
}

/// Whether such a field does nothing though it is set.
pub(crate) fn is_idle_lora_field(field: &str, value: &Value, fields: &Map<String, Value>) -> bool {
    let is_off = |field: &str| fields.get(field).is_none_or(is_unset);
    let starts_as = |name: &str| {
        let init = fields.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
        init.eq_ignore_ascii_case(name)
    };
    match field {
        // PEFT looks at these only together with another field.
        "megatron_core" => is_off("megatron_config"),
        "qalora_group_size" => is_off("use_qalora"),
        "corda_config" => !starts_as("corda"),
        "lora_ga_config" => !starts_as("lora_ga"),
        // Of these, an empty one is not set; of the others, it has the default settings.
        "alora_invocation_tokens"
        | "megatron_config"
        | "monteclora_config"
        | "target_parameters"
        | "trainable_token_indices"
        | "velora_config" => is_unset(value),
        _ => false,
    }
}
