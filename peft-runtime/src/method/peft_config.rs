//! The config of any method.

use std::sync::Arc;

use super::registry::read_config;
use crate::adapter::AdapterMethod;
use crate::error::Result;

/// The config of any [registered](super::register) method, as `adapter_config.json` holds it.
///
/// ```
/// use peft_runtime::{LoraConfig, PeftConfig};
///
/// let config = PeftConfig::from(LoraConfig::new(8, 16.0));
/// let read = PeftConfig::from_json(&config.to_json()?)?;
/// assert_eq!(read.downcast_ref::<LoraConfig>(), Some(&LoraConfig::new(8, 16.0)));
/// # Ok::<(), peft_runtime::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PeftConfig(Arc<dyn AdapterMethod>);

impl PeftConfig {
    /// Reads the text of an `adapter_config.json`; `peft_type` decides which method it is.
    ///
    /// # Errors
    /// If the text is not JSON, the method is not supported, an unsupported switch is on, or a value is invalid.
    pub fn from_json(text: &str) -> Result<Self> {
        read_config(text).map(Self)
    }

    /// The text of the `adapter_config.json`, keys sorted.
    ///
    /// # Errors
    /// If a value has no JSON form.
    pub fn to_json(&self) -> Result<String> {
        self.0.to_json(&[])
    }

    /// The config as an adapter method.
    pub fn method(&self) -> &dyn AdapterMethod {
        self.0.as_ref()
    }

    /// The config as an adapter method that can be shared.
    pub fn into_method(self) -> Arc<dyn AdapterMethod> {
        self.0
    }

    /// The config as `C`, if that is what it is.
    pub fn downcast_ref<C: AdapterMethod>(&self) -> Option<&C> {
        self.0.downcast_ref()
    }
}

impl<C: AdapterMethod> From<C> for PeftConfig {
    fn from(config: C) -> Self {
        Self(Arc::new(config))
    }
}

impl From<Arc<dyn AdapterMethod>> for PeftConfig {
    fn from(method: Arc<dyn AdapterMethod>) -> Self {
        Self(method)
    }
}
