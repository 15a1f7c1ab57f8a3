//! Parameter-efficient fine-tuning of [candle](https://github.com/huggingface/candle) models: LoRA, LoHa, LoKr, AdaLoRA
//! and IA3 adapters, injected into the layers of any model in place, trained, merged, and stored in the file format of
//! Python PEFT 0.21.2.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{Linear, Module, VarBuilder, VarMap};
//! use peft_runtime::nn;
//! use peft_runtime::prelude::*;
//! use peft_runtime::train::{AdamW, Schedule, Trainer};
//!
//! #[derive(Injectable)]
//! struct Regression {
//!     linear: Adapted<Linear>, // a candle layer with room for adapters
//! }
//!
//! let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
//! let mut model = Regression { linear: nn::linear(4, 1, vb.pp("linear"))? };
//! let config = LoraConfig::new(2, 4.0).with_targets(targets!(Regression; "linear"));
//! model.inject_adapter(&config, "default")?;
//!
//! let x = Tensor::new(&[[5.1f32, 3.5, 1.4, 0.2]], &Device::Cpu)?;
//! let mut trainer = Trainer::new(&model, AdamW::for_model(&model, 1e-2)?, Schedule::constant())?;
//! trainer.step(&model, &model.linear.forward(&x)?.sqr()?.mean_all()?)?;
//! model.save_pretrained(std::env::temp_dir().join("regression-lora"), "default")?;
//! # Ok::<(), peft_runtime::Error>(())
//! ```
//!
//! # Where to look
//!
//! | I want to | look at |
//! | --- | --- |
//! | make room for adapters in my own model | [`Injectable`](macro@Injectable), [`Adapted`], the constructors in [`nn`] |
//! | choose a method and its targets | [`LoraConfig`], [`LohaConfig`], [`LokrConfig`], [`AdaLoraConfig`], [`Ia3Config`], [`targets!`] |
//! | inject, activate, merge, save and load adapters | [`PeftModel`], which every model implements |
//! | train | [`train`] |
//! | load another crate's model with adapters merged in | [`MergedWeights`] |
//! | read, compare and combine adapters without a model | [`StoredAdapter`] |
//! | write my own adapter method | [`method::Method`] |
//! | write my own kind of layer | [`layer::BaseLayer`] |
//!
//! # Swapping while serving
//!
//! A model is swapped under a lock while others read it: a forward pass sees the adapter before or the one after.
//!
//! ```
//! use std::sync::RwLock;
//!
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{Linear, Module};
//! use peft_runtime::prelude::*;
//!
//! #[derive(Injectable)]
//! struct Model {
//!     linear: Adapted<Linear>,
//! }
//!
//! let weight = Tensor::ones((3, 2), DType::F32, &Device::Cpu)?;
//! let mut model = Model { linear: Linear::new(weight, None).into() };
//! model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(targets!(Model; "linear")), "default")?;
//! let folder = tempfile::tempdir().unwrap();
//! model.save_pretrained(folder.path(), "default")?;
//!
//! let model = RwLock::new(model);
//! let x = Tensor::ones((1, 2), DType::F32, &Device::Cpu)?;
//! std::thread::scope(|scope| {
//!     scope.spawn(|| model.read().unwrap().linear.forward(&x));
//!     scope.spawn(|| model.write().unwrap().hotswap_adapter(folder.path(), "default").map(drop));
//! });
//! # Ok::<(), peft_runtime::Error>(())
//! ```
//!
//! # Features
//!
//! | feature | adds |
//! | --- | --- |
//! | `macros` (default) | `#[derive(Injectable)]` and `targets!` |
//! | `decompositions` (default) | singular values, QR and eigenvectors: PiSSA, OLoRA, EVA, the combinations that end in `svd`, LoRA-FA |
//! | `models` | the Llama family, GPT-2 and BERT, with generation |
//! | `hub` | downloads by hub id |
//! | `accelerate`, `cuda`, `cudnn`, `metal`, `mkl`, `nccl` | candle's features of the same names |
#![deny(unsafe_code)]

// The derive refers to `::peft_runtime` by default; this makes it work inside this crate too.
extern crate self as peft_runtime;

pub mod adapter;
pub mod config;
pub mod error;
#[cfg(feature = "hub")]
pub mod hub;
pub mod layer;
pub mod method;
#[cfg(feature = "models")]
pub mod models;
pub mod module;
pub mod nn;
pub mod prelude;
pub mod schema;

mod declared;
mod display;
mod inject;
mod manage;
mod model;
mod ops;
mod path;
mod select;
mod store;
mod training;

pub use candle_core;
pub use candle_nn;

pub use config::{Bias, CombinationType, CombineOptions, MajoritySign, TokenIndices};
pub use display::{LayerStatus, ModelStatus, Uniform};
pub use error::{Error, Result};
pub use inject::{InjectOptions, InjectionReport, UnmatchedPattern};
pub use layer::{Adapted, no_grad};
pub use manage::{MergeOptions, RequantizeReport, RequantizedLayer};
pub use method::{
    AdaLoraConfig, EvaConfig, Ia3Config, LohaConfig, LokrConfig, LokrInit, LoraConfig, LoraInit, PeftConfig,
};
pub use model::PeftModel;
pub use module::Injectable;
pub use path::ModulePath;
#[cfg(feature = "macros")]
pub use peft_macros::Injectable;
pub use select::TargetModules;
pub use store::{
    BaseWeights, ImageProgram, LoadOptions, LoadReport, MergedWeights, ModelWeights, NameMap, PipelineModel,
    SaveEmbeddings, SaveOptions, StoredAdapter, StoredKind, StoredLayer, StoredShape, Unadapted,
    WriteProgress, WriteReport,
};

/// Training: optimiser, schedule, gradient checks and checkpoints, for your own training loop.
///
/// [`Trainer`](train::Trainer) does all of it in one call per batch. The parts also work on their own, with candle's
/// optimisers: [`audit`](fn@train::audit) in one line of a loop, [`clip_by_global_norm`](train::clip_by_global_norm),
/// [`Schedule::factor`](train::Schedule::factor), [`Checkpoints`](train::Checkpoints).
pub mod train {
    pub use crate::method::adalora::training::{Allocation, RankAllocator};
    pub use crate::method::lora::training::{LoraFa, LoraPlus, lora_plus_groups};
    pub use crate::training::*;
}

/// Target modules whose names are checked against the model at compile time.
///
/// A name matches the end of a module path, by whole segments; `*` stands for any one segment.
///
/// ```
/// use candle_nn::Linear;
/// use peft_runtime::prelude::*;
///
/// #[derive(Injectable)]
/// struct Block {
///     q_proj: Adapted<Linear>,
///     v_proj: Adapted<Linear>,
/// }
///
/// #[derive(Injectable)]
/// struct Model {
///     layers: Vec<Block>,
/// }
///
/// let config = LoraConfig::new(8, 16.0).with_targets(targets!(Model; "q_proj", "layers.*.v_proj"));
/// # let _ = config;
/// ```
///
/// ```compile_fail
/// # use candle_nn::Linear;
/// # use peft_runtime::prelude::*;
/// # #[derive(Injectable)]
/// # struct Block { q_proj: Adapted<Linear> }
/// let targets = targets!(Block; "q_prj"); // error: no module named `q_prj` in `Block`; did you mean `q_proj`?
/// ```
#[cfg(feature = "macros")]
#[macro_export]
macro_rules! targets {
    ($($input:tt)*) => {
        $crate::__private::targets_in!($crate; $($input)*)
    };
}

/// What generated code refers to; not for direct use.
#[doc(hidden)]
pub mod __private {
    pub use crate::config::Bias;
    pub use crate::declared::{Declared, DeclaredLora};
    pub use crate::module::{Cursor, CursorMut, Injectable};
    pub use crate::schema::{Field, Schema, check_target};
    pub use crate::select::TargetModules;
    pub use core::convert::AsRef;
    pub use core::option::Option;
    #[cfg(feature = "macros")]
    pub use peft_macros::targets_in;

    /// The targets that `targets!` checked.
    pub fn targets(names: &[&str]) -> TargetModules {
        TargetModules::from_globs(names)
    }
}

/// The code in `README.md`, in `docs/` and on the derive, compiled with the doctests. The tutorials' files are packages in
/// `tests/tutorials`.
#[cfg(doctest)]
mod documents {
    // The README's second example needs a model from `models`.
    #[cfg(feature = "models")]
    #[doc = include_str!("../README.md")]
    struct FrontPage;
    #[doc = include_str!("../../docs/ARCHITECTURE.md")]
    struct Architecture;
    #[doc = include_str!("../../docs/from-python.md")]
    struct FromPython;
    #[doc = include_str!("../../peft-macros/docs/injectable.md")]
    struct DeriveInjectable;
    #[doc = include_str!("../../docs/image-adapters.md")]
    struct ImageAdapters;
    #[doc = include_str!("../../docs/methods.md")]
    struct Methods;
    #[doc = include_str!("../../docs/migrating-a-candle-model.md")]
    struct MigratingACandleModel;
    #[doc = include_str!("../../docs/reliability.md")]
    struct Reliability;
    #[doc = include_str!("../../docs/troubleshooting.md")]
    struct Troubleshooting;
    #[doc = include_str!("../../docs/your-own-model.md")]
    struct YourOwnModel;
}
