//! Reading and writing `adapter_config.json`: what is inert, what is refused, what is kept.

use serde_json::{Map, Value, json};

use super::adapter_config::AdapterConfig;
use super::settings::Method;
use crate::adapter::AdapterMethod;
use crate::config::{BlockFields, is_unset};
use crate::error::{ConfigError, Error, Result, shortened};

/// The fields of [`BlockFields`], which not every method has.
const BLOCK_FIELDS: [&str; 2] = ["layers_to_transform", "layers_pattern"];

impl<M: Method> AdapterConfig<M> {
    /// Reads the text of an `adapter_config.json`.
    ///
    /// # Errors
    /// If the text is not JSON, an unsupported switch is on, or a value is invalid.
    pub fn from_json(text: &str) -> Result<Self> {
        from_json(text)
    }

    /// The text of the `adapter_config.json`: every field of PEFT 0.21.2, keys sorted.
    ///
    /// # Errors
    /// If a value has no JSON form.
    pub fn to_json(&self) -> Result<String> {
        to_json(self)
    }
}

/// Reads a config: refuses switches that are on and not implemented, and keeps every unknown key.
fn from_json<M: Method>(text: &str) -> Result<AdapterConfig<M>> {
    // The config is read from the text, not from the value: the order of patterns matters, and a map of values may not
    // keep it.
    let fields: Map<String, Value> = serde_json::from_str(text)?;
    for (field, inert) in M::unimplemented_fields() {
        if let Some(value) = fields.get(field)
            && !is_inert(value, &inert)
            && !M::is_idle(field, value, &fields)
        {
            let value = shortened(&value.to_string()).into_owned();
            return Err(Error::Config(ConfigError::UnsupportedSwitch { field: field.to_owned(), value }));
        }
    }
    let config = serde_json::from_str(text);
    let mut config: AdapterConfig<M> =
        config.map_err(|error| wrong_value::<M>(&fields).unwrap_or_else(|| error.into()))?;
    // What is written anyway need not be remembered as unknown.
    let unknown = &mut config.common.unknown;
    unknown.remove("peft_type");
    // Groups of fields inside the settings leave their fields among the unknown ones.
    if let Value::Object(own) = serde_json::to_value(&config.settings)? {
        unknown.retain(|field, _| !own.contains_key(field));
    }
    for (field, inert) in M::unimplemented_fields().into_iter().chain(M::ignored_fields()) {
        if unknown.get(field) == Some(&inert) {
            unknown.remove(field);
        }
    }
    if !M::FILTERS_BLOCKS {
        config.blocks = BlockFields::default();
        let kept =
            BLOCK_FIELDS.iter().filter_map(|field| Some(((*field).to_owned(), fields.get(*field)?.clone())));
        unknown.extend(kept);
    }
    match config.faults().into_iter().next() {
        Some((field, reason)) => Err(Error::Config(ConfigError::Invalid { field, reason })),
        None => Ok(config),
    }
}

/// A switch does nothing if it is false in Python, or at the value it has when it is off. An empty group of settings is not
/// false: it has the default settings.
fn is_inert(value: &Value, inert: &Value) -> bool {
    value == inert || is_unset(value) && (inert.is_boolean() || !value.is_object())
}

/// The first field whose value is not what the method has there, whatever the others are.
fn wrong_value<M: Method>(fields: &Map<String, Value>) -> Option<Error> {
    let reason = |fields: Map<String, Value>| {
        let read: Result<AdapterConfig<M>, _> = serde_json::from_value(Value::Object(fields));
        read.err().map(|error| error.to_string())
    };
    // A method may need fields that a config of one field lacks.
    let of_none = reason(Map::new());
    fields.iter().find_map(|(field, value)| {
        let of_one = reason([(field.clone(), value.clone())].into_iter().collect());
        let reason = of_one.filter(|reason| Some(reason) != of_none.as_ref())?;
        let value = shortened(&value.to_string()).into_owned();
        Some(Error::Config(ConfigError::Unreadable { field: field.clone(), value, reason }))
    })
}

/// Writes a config as PEFT does: every field of the method, keys sorted, two spaces.
fn to_json<M: Method>(config: &AdapterConfig<M>) -> Result<String> {
    let mut value = serde_json::to_value(config)?;
    if let Value::Object(fields) = &mut value {
        fields.insert("peft_type".to_owned(), json!(M::PEFT_TYPE));
        for (field, inert) in M::unimplemented_fields().into_iter().chain(M::ignored_fields()) {
            fields.entry(field).or_insert(inert);
        }
        for field in BLOCK_FIELDS.into_iter().filter(|_| !M::FILTERS_BLOCKS) {
            match config.common.unknown.get(field) {
                Some(value) => fields.insert(field.to_owned(), value.clone()),
                None => fields.remove(field),
            };
        }
    }
    Ok(serde_json::to_string_pretty(&sorted(value))?)
}

/// The value with the keys of all its objects sorted, whatever map serde_json was built with.
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
