//! What a user of adapters needs: `use peft_runtime::prelude::*`.

pub use crate::config::{Bias, CombinationType, CombineOptions};
pub use crate::inject::InjectOptions;
pub use crate::layer::{Adapted, no_grad};
pub use crate::manage::MergeOptions;
pub use crate::method::{
    AdaLoraConfig, EvaConfig, Ia3Config, LohaConfig, LokrConfig, LokrInit, LoraConfig, LoraInit,
};
pub use crate::model::PeftModel;
pub use crate::module::Injectable;
pub use crate::select::TargetModules;
pub use crate::store::{LoadOptions, SaveOptions};
#[cfg(feature = "macros")]
pub use crate::targets;
#[cfg(feature = "macros")]
pub use peft_macros::Injectable;
