//! The methods that are recognised by the `peft_type` of a file.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use super::adalora::AdaLoraSettings;
use super::adapter_config::AdapterConfig;
use super::ia3::Ia3Settings;
use super::loha::LohaSettings;
use super::lokr::LokrSettings;
use super::lora::LoraSettings;
use super::settings::Method;
use super::tokens;
use crate::adapter::AdapterMethod;
use crate::config::is_unset;
use crate::error::{ConfigError, Error, Result};

/// A registered method.
#[derive(Clone, Copy)]
struct Registered {
    settings: TypeId,
    /// Reads the text of an `adapter_config.json`.
    read: fn(&str) -> Result<Arc<dyn AdapterMethod>>,
}

/// Where files store the layer beneath an adapter, relative to the layer's own path; longer ones first.
pub(crate) const BASE_LAYER_PATHS: [&str; 2] = [tokens::BASE_LAYER_PATH, "base_layer"];

/// The methods by `peft_type`.
static METHODS: LazyLock<RwLock<BTreeMap<&'static str, Registered>>> = LazyLock::new(|| {
    RwLock::new(BTreeMap::from([
        entry::<AdaLoraSettings>(),
        entry::<Ia3Settings>(),
        entry::<LohaSettings>(),
        entry::<LokrSettings>(),
        entry::<LoraSettings>(),
    ]))
});

fn entry<M: Method>() -> (&'static str, Registered) {
    let read =
        |text: &str| -> Result<Arc<dyn AdapterMethod>> { Ok(Arc::new(AdapterConfig::<M>::from_json(text)?)) };
    (M::PEFT_TYPE, Registered { settings: TypeId::of::<M>(), read })
}

/// Makes a method known by its `peft_type`, for as long as the program runs.
///
/// From then on its adapters can be loaded, hot-swapped, read without a model, merged into checkpoints and combined
/// like those of the built-in methods. Registering a method a second time changes nothing.
///
/// # Errors
/// [`ConfigError::RegisteredMethod`] if another method has the same `peft_type`.
pub fn register<M: Method>() -> Result<()> {
    let (peft_type, method) = entry::<M>();
    let mut methods = METHODS.write().unwrap_or_else(PoisonError::into_inner);
    let known = methods.entry(peft_type).or_insert(method);
    if known.settings != method.settings {
        return Err(Error::Config(ConfigError::RegisteredMethod { peft_type: peft_type.to_owned() }));
    }
    Ok(())
}

/// The `peft_type` of every method that files can have, in order.
pub fn registered() -> Vec<&'static str> {
    METHODS.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
}

/// Reads the text of an `adapter_config.json` with the method that it names.
pub(super) fn read_config(text: &str) -> Result<Arc<dyn AdapterMethod>> {
    let value: serde_json::Value = serde_json::from_str(text)?;
    let supported = || registered().into_iter().map(str::to_owned).collect();
    let peft_type = value.get("peft_type").unwrap_or(&serde_json::Value::Null);
    if value.is_object() && is_unset(peft_type) {
        return Err(Error::Config(ConfigError::NoMethod { supported: supported() }));
    }
    let peft_type = peft_type.as_str().unwrap_or_default();
    let known = METHODS.read().unwrap_or_else(PoisonError::into_inner).get(peft_type).copied();
    match known {
        Some(method) => (method.read)(text),
        None => Err(Error::Config(ConfigError::UnsupportedMethod {
            peft_type: peft_type.to_owned(),
            supported: supported(),
        })),
    }
}
