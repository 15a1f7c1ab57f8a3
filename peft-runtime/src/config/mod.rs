//! The configs of the adapter methods, in Rust's words and in the shape of `adapter_config.json`.

mod common;
mod json;
mod lora;
mod pattern_map;

pub use common::{Bias, CommonFields};
pub use lora::{LoftqConfig, LoraConfig, LoraInit};
pub use pattern_map::PatternMap;

pub(crate) use pattern_map::Chosen;

pub(crate) use common::ConfigFields;
pub(crate) use json::{from_json, to_json};

use crate::error::{Error, Result};

/// The config of any method, as `adapter_config.json` holds it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum PeftConfig {
    /// LoRA and its variants.
    Lora(LoraConfig),
}

impl PeftConfig {
    /// Reads the text of an `adapter_config.json`; `peft_type` decides which method it is.
    ///
    /// # Errors
    /// If the text is not JSON, the method or a switch that is on is not supported, or a value is invalid.
    pub fn from_json(text: &str) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_str(text)?;
        match value.get("peft_type").and_then(serde_json::Value::as_str) {
            Some(lora::PEFT_TYPE) => Ok(Self::Lora(from_json(text)?)),
            other => Err(Error::UnsupportedMethod {
                peft_type: other.unwrap_or_default().to_owned(),
                supported: [lora::PEFT_TYPE].map(str::to_owned).to_vec(),
            }),
        }
    }

    /// The text of the `adapter_config.json`, keys sorted.
    ///
    /// # Errors
    /// If a value has no JSON form.
    pub fn to_json(&self) -> Result<String> {
        match self {
            Self::Lora(config) => config.to_json(),
        }
    }
}

impl From<LoraConfig> for PeftConfig {
    fn from(config: LoraConfig) -> Self {
        Self::Lora(config)
    }
}
