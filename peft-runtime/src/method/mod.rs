//! The adapter methods, one folder each, and the registry that knows them.
//!
//! A method is a type of settings that implements [`Method`]: what its config file holds, which layers it can adapt, and how it
//! makes the [`Adapter`](crate::adapter::Adapter) of one. [`AdapterConfig`] adds what all methods share, and the
//! [registry](register) makes the method known by its `peft_type` to everything that reads files.
//!
//! | folder | method |
//! | --- | --- |
//! | `lora` | LoRA, DoRA, rank stabilisation, PiSSA, OLoRA, LoftQ, EVA; LoRA+ and LoRA-FA in training |
//! | `adalora` | AdaLoRA, and the rank allocation that training adds |
//! | `ia3` | IA3 |
//! | `loha` | LoHa |
//! | `lokr` | LoKr |
//! | `tokens` | trainable tokens, which LoRA's config switches on |

mod adapter_config;
mod adapter_method;
mod json;
mod peft_config;
mod registry;
mod settings;
#[cfg(test)]
mod testing;
mod weight_delta;

pub(crate) mod adalora;
pub(crate) mod ia3;
pub(crate) mod loha;
pub(crate) mod lokr;
pub(crate) mod lora;
pub(crate) mod tokens;

pub use adapter_config::AdapterConfig;
pub use peft_config::PeftConfig;
pub(crate) use registry::BASE_LAYER_PATHS;
pub use registry::{register, registered};
pub use settings::{FiltersBlocks, Method};

pub use adalora::{AdaLora, AdaLoraConfig, AdaLoraSettings};
pub use ia3::{Ia3, Ia3Config, Ia3Settings};
pub use loha::{Loha, LohaConfig, LohaSettings, LohaStart};
pub use lokr::{Lokr, LokrConfig, LokrInit, LokrSettings, LokrShape};
pub use lora::{EvaConfig, LoftqConfig, Lora, LoraConfig, LoraInit, LoraSettings};
pub use tokens::TrainableTokens;
pub use weight_delta::DeltaSettings;
