//! Values that PEFT, which asks of many values only whether they are true, reads as unset.

use serde::de::{DeserializeOwned, Error as _, Unexpected};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Whether Python takes the value for false.
pub(crate) fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// A switch; what Python takes for false turns it off.
pub(crate) fn switch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Bool(value) => Ok(value),
        value if is_unset(&value) => Ok(false),
        Value::Number(number) if number.as_u64() == Some(1) => Ok(true),
        // Python takes "false" for true.
        Value::String(text) => Err(D::Error::invalid_type(Unexpected::Str(&text), &"true or false")),
        value => Err(D::Error::custom(format!("{value} is not true or false"))),
    }
}

/// Whether the value is one that Python takes for true.
pub(crate) fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(!is_unset(&Value::deserialize(deserializer)?))
}

/// The value, unless Python takes it for false.
pub(crate) fn unless_unset<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let value = Value::deserialize(deserializer)?;
    if is_unset(&value) {
        Ok(None)
    } else {
        serde_json::from_value(value).map(Some).map_err(D::Error::custom)
    }
}

/// The number; null is 0.
pub(crate) fn number_or_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::{switch, unless_unset};

    #[derive(Debug, PartialEq, Deserialize)]
    struct Fields {
        #[serde(default, deserialize_with = "switch")]
        on: bool,
        #[serde(default, deserialize_with = "unless_unset")]
        names: Option<Vec<String>>,
    }

    fn read(value: Value) -> Result<Fields, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn what_python_takes_for_false_is_off_and_unset() {
        for off in [json!(null), json!(false), json!(0), json!(""), json!([]), json!({})] {
            assert_eq!(read(json!({"on": off, "names": off})).unwrap(), Fields { on: false, names: None });
        }
        assert_eq!(read(json!({})).unwrap(), Fields { on: false, names: None });
        for on in [json!(true), json!(1)] {
            assert!(read(json!({"on": on})).unwrap().on);
        }
        assert_eq!(read(json!({"names": ["a"]})).unwrap().names, Some(vec!["a".to_owned()]));
    }

    #[test]
    fn other_values_are_not_guessed() {
        for wrong in [json!("false"), json!(2), json!([1])] {
            assert!(read(json!({"on": wrong})).unwrap_err().contains("true or false"));
        }
        assert!(read(json!({"names": "a"})).is_err());
    }
}
