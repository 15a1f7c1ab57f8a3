//! Reading and writing `adapter_config.json`: what is inert, what is refused, what is kept.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::common::ConfigFields;
use crate::error::{Error, Result};

/// Reads a config: refuses switches that are on and not implemented, keeps every key it does not know.
pub(crate) fn from_json<C: ConfigFields + DeserializeOwned>(text: &str) -> Result<C> {
    if let Value::Object(fields) = serde_json::from_str(text)? {
        for (field, inert) in C::unimplemented_fields() {
            if let Some(value) = fields.get(field)
                && !is_inert(value, &inert)
            {
                return Err(Error::UnsupportedSwitch { field: field.to_owned(), value: value.to_string() });
            }
        }
    }
    // From the text and not from the value: the order of patterns matters, and a map of values may not keep it.
    let mut config: C = serde_json::from_str(text)?;
    // What is written anyway need not be remembered as unknown.
    let unknown = &mut config.common_mut().unknown;
    unknown.remove("peft_type");
    for (field, inert) in C::unimplemented_fields().into_iter().chain(C::ignored_fields()) {
        if unknown.get(field) == Some(&inert) {
            unknown.remove(field);
        }
    }
    match config.faults().into_iter().next() {
        Some((field, reason)) => Err(Error::Config { field, reason }),
        None => Ok(config),
    }
}

/// A switch does nothing if it is null, false, empty, or at the value it has when it is off.
fn is_inert(value: &Value, inert: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        other => other == inert,
    }
}

/// Writes a config as PEFT does: every field of the method, keys sorted, two spaces.
pub(crate) fn to_json<C: ConfigFields + Serialize>(config: &C) -> Result<String> {
    let mut value = serde_json::to_value(config)?;
    if let Value::Object(fields) = &mut value {
        fields.insert("peft_type".to_owned(), json!(C::PEFT_TYPE));
        for (field, inert) in C::unimplemented_fields().into_iter().chain(C::ignored_fields()) {
            fields.entry(field).or_insert(inert);
        }
    }
    Ok(serde_json::to_string_pretty(&sorted(value))?)
}

/// The value with the keys of all its objects in order, whatever map serde_json was built with.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<(String, Value)> = fields.into_iter().collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(fields.into_iter().map(|(key, value)| (key, sorted(value))).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}
