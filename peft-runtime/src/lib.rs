#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

// The derive's default path, also inside this crate.
extern crate self as peft_runtime;

pub mod adapter;
pub mod config;
pub mod error;
#[cfg(feature = "hub")]
pub mod hub;
pub mod layer;
#[cfg(feature = "models")]
pub mod models;
pub mod module;
pub mod nn;
pub mod prelude;
pub mod schema;
pub mod train;

mod declared;
mod display;
mod inject;
mod manage;
mod model;
mod ops;
mod path;
mod select;
mod store;

pub use candle_core;
pub use candle_nn;

pub use config::{
    AdaLoraConfig, Bias, CombinationType, CombineOptions, EvaConfig, Ia3Config, LoraConfig, LoraInit,
    MajoritySign, PeftConfig, TokenIndices,
};
pub use display::{LayerStatus, ModelStatus, Uniform, thousands};
pub use error::{Error, Result};
pub use inject::InjectionReport;
pub use layer::{Adapted, no_grad};
pub use manage::MergeOptions;
pub use model::PeftModel;
pub use module::Injectable;
pub use path::ModulePath;
#[cfg(feature = "macros")]
pub use peft_macros::Injectable;
pub use select::TargetModules;
pub use store::{
    BaseWeights, Checkpoint, LoadOptions, LoadReport, MergedWeights, NameMap, SaveEmbeddings, SaveOptions,
    StoredAdapter, StoredKind, StoredLayer, StoredShape, Unadapted, WriteProgress, WriteReport, read_text,
};

/// Target modules whose names are checked against the model at compile time.
///
/// A name is the end of a module path by whole segments; `*` stands for any one segment.
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

/// What generated code names; not for use by hand.
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

/// The code in `docs/` and on the derive, compiled with the doctests; `README.md` is the crate's own page.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../docs/ARCHITECTURE.md")]
    struct Architecture;
    #[doc = include_str!("../../docs/from-python.md")]
    struct FromPython;
    #[doc = include_str!("../../peft-macros/docs/injectable.md")]
    struct DeriveInjectable;
    #[doc = include_str!("../../docs/methods.md")]
    struct Methods;
    #[doc = include_str!("../../docs/migrating-a-candle-model.md")]
    struct MigratingACandleModel;
    #[doc = include_str!("../../docs/reliability.md")]
    struct Reliability;
    #[doc = include_str!("../../docs/troubleshooting.md")]
    struct Troubleshooting;
    #[doc = include_str!("../../docs/tutorial.md")]
    struct Tutorial;
}
