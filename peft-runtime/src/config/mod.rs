//! The configs of the adapter methods, in Rust's words and in the shape of `adapter_config.json`.

mod adalora;
mod combination;
mod common;
mod default_targets;
mod eva;
mod ia3;
mod json;
mod lora;
mod lora_init;
mod modules;
mod pattern_map;
mod reach;

pub use adalora::AdaLoraConfig;
pub use combination::{CombinationType, CombineOptions, MajoritySign};
pub use common::{Bias, CommonFields};
pub use eva::EvaConfig;
pub use ia3::Ia3Config;
pub use lora::LoraConfig;
pub use lora_init::{LoftqConfig, LoraInit};
pub use pattern_map::PatternMap;
pub use reach::TokenIndices;

pub(crate) use combination::Merge;
pub(crate) use pattern_map::Chosen;

pub(crate) use common::ConfigFields;
pub(crate) use json::{from_json, to_json};

use crate::error::{Error, Result};

/// The config of any method, as `adapter_config.json` holds it.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each adapter, and it is matched on, not moved"
)]
#[non_exhaustive]
pub enum PeftConfig {
    /// LoRA and its variants.
    Lora(LoraConfig),
    /// LoRA with ranks that move between layers.
    AdaLora(AdaLoraConfig),
    /// Scaling vectors.
    Ia3(Ia3Config),
}

impl PeftConfig {
    /// Reads the text of an `adapter_config.json`; `peft_type` decides which method it is.
    ///
    /// # Errors
    /// If the text is not JSON, the method or a switch that is on is not supported, or a value is invalid.
    pub fn from_json(text: &str) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_str(text)?;
        match value.get("peft_type").and_then(serde_json::Value::as_str) {
            Some(LoraConfig::PEFT_TYPE) => Ok(Self::Lora(from_json(text)?)),
            Some(AdaLoraConfig::PEFT_TYPE) => Ok(Self::AdaLora(from_json(text)?)),
            Some(Ia3Config::PEFT_TYPE) => Ok(Self::Ia3(from_json(text)?)),
            other => Err(Error::UnsupportedMethod {
                peft_type: other.unwrap_or_default().to_owned(),
                supported: [LoraConfig::PEFT_TYPE, AdaLoraConfig::PEFT_TYPE, Ia3Config::PEFT_TYPE]
                    .map(str::to_owned)
                    .to_vec(),
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
            Self::AdaLora(config) => config.to_json(),
            Self::Ia3(config) => config.to_json(),
        }
    }
}

impl From<LoraConfig> for PeftConfig {
    fn from(config: LoraConfig) -> Self {
        Self::Lora(config)
    }
}

impl From<AdaLoraConfig> for PeftConfig {
    fn from(config: AdaLoraConfig) -> Self {
        Self::AdaLora(config)
    }
}

impl From<Ia3Config> for PeftConfig {
    fn from(config: Ia3Config) -> Self {
        Self::Ia3(config)
    }
}
