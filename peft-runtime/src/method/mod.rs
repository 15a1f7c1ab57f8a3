//! The adapter methods, one folder each, and the registry that knows them.
//!
//! A method is a type of settings that implements [`Method`]: what its config file holds, which layers it can adapt,
//! and how it makes the [`Adapter`](crate::adapter::Adapter) for one. [`AdapterConfig`] adds what all methods share,
//! and the [registry](register) makes the method known by its `peft_type` to everything that reads files.
//!
//! | folder | method |
//! | --- | --- |
//! | `lora` | LoRA, DoRA, rank stabilisation, PiSSA, OLoRA, LoftQ, EVA; LoRA+ and LoRA-FA in training |
//! | `adalora` | AdaLoRA, and the rank allocation that training adds |
//! | `ia3` | IA3 |
//! | `loha` | LoHa |
//! | `lokr` | LoKr |
//! | `tokens` | trainable tokens, which the configs of LoRA and AdaLoRA switch on |
//!
//! # A method of your own
//!
//! A method that multiplies the output of a layer by one number:
//!
//! ```
//! use std::sync::Arc;
//!
//! use candle_core::{DType, Device, Result as CandleResult, Tensor, Var};
//! use candle_nn::{Linear, Module};
//! use peft_runtime::ModulePath;
//! use peft_runtime::adapter::{
//!     Adapter, AdapterTensor, Built, Call, Component, Geometry, Init, LayerSettings, LayerShapes, LinearParameters,
//!     MergeError, Site, TensorSource,
//! };
//! use peft_runtime::error::{Fault, Result};
//! use peft_runtime::method::{AdapterConfig, Method, register};
//! use peft_runtime::prelude::*;
//! use peft_runtime::schema::LayerKind;
//!
//! /// The settings.
//! #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
//! struct Scaling {
//!     start: f64,
//! }
//!
//! /// What one layer gets.
//! #[derive(Debug)]
//! struct Factor(Var);
//!
//! impl Adapter for Factor {
//!     fn tensors(&self) -> Vec<AdapterTensor<'_>> {
//!         vec![AdapterTensor::new("scaling_factor", &self.0)]
//!     }
//!
//!     fn adapt_output(&self, call: &Call<'_>, _: &Tensor, output: Tensor) -> CandleResult<Tensor> {
//!         output.broadcast_mul(&call.tensor(&self.0).to_dtype(output.dtype())?)
//!     }
//!
//!     fn merge(&self, _: &Site<'_>, parameters: LinearParameters) -> Result<LinearParameters, MergeError> {
//!         let scaled = |tensor: &Tensor| tensor.broadcast_mul(&self.0.as_detached_tensor().to_dtype(tensor.dtype())?);
//!         let bias = parameters.bias.as_ref().map(scaled).transpose()?;
//!         Ok(LinearParameters { weight: scaled(&parameters.weight)?, bias })
//!     }
//!
//!     fn label(&self) -> &'static str {
//!         "scaling"
//!     }
//!
//!     fn components(&self) -> Vec<Component> {
//!         vec![Component::tensors("scaling_factor", Some(&self.0))]
//!     }
//! }
//!
//! impl Method for Scaling {
//!     const PEFT_TYPE: &'static str = "SCALING";
//!     const NAME: &'static str = "scaling";
//!     const KEY_PREFIX: &'static str = "scaling_";
//!
//!     fn plan_layer(
//!         _: &AdapterConfig<Self>,
//!         path: &ModulePath,
//!         kind: LayerKind,
//!         geometry: &Geometry,
//!     ) -> Result<LayerSettings, Fault> {
//!         match geometry {
//!             Geometry::Linear { .. } => Ok(LayerSettings::new().with_changed_bias(true)),
//!             _ => Err(Fault::unsupported_layer(path, kind, Self::NAME, "it scales linear layers")),
//!         }
//!     }
//!
//!     fn build(
//!         config: &AdapterConfig<Self>,
//!         _: &Site<'_>,
//!         _: &LayerSettings,
//!         source: &mut dyn TensorSource,
//!     ) -> Result<Built> {
//!         let start = Init::Constant(config.settings().start);
//!         Ok(Built::new(Arc::new(Factor(source.tensor("scaling_factor", &[1], start)?))))
//!     }
//!
//!     fn geometry(
//!         _: &AdapterConfig<Self>,
//!         _: &LayerShapes,
//!         weight: Option<&[usize]>,
//!         transposed: bool,
//!     ) -> Option<Geometry> {
//!         // The tensors say nothing about the layer.
//!         Some(Geometry::of_weight(weight, transposed))
//!     }
//! }
//!
//! #[derive(Injectable)]
//! struct Model {
//!     linear: Adapted<Linear>,
//! }
//!
//! register::<Scaling>()?;
//! let mut model = Model { linear: Linear::new(Tensor::ones((3, 2), DType::F32, &Device::Cpu)?, None).into() };
//! let config = AdapterConfig::of(Scaling { start: 1.0 }).with_targets(targets!(Model; "linear"));
//! model.inject_adapter(&config, "default")?;
//! let (_, factor) = model.trainable_parameters().remove(0);
//! factor.set(&Tensor::new(&[5f32], &Device::Cpu)?)?;
//! let x = Tensor::ones((1, 2), DType::F32, &Device::Cpu)?;
//! assert_eq!(model.linear.forward(&x)?.to_vec2::<f32>()?, [[10.0, 10.0, 10.0]]);
//! model.merge_adapters(&MergeOptions::active())?;
//! assert_eq!(model.linear.forward(&x)?.to_vec2::<f32>()?, [[10.0, 10.0, 10.0]]);
//! # Ok::<(), peft_runtime::Error>(())
//! ```

mod adapter_config;
mod adapter_method;
mod filters_blocks;
mod json;
mod key_ends;
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
pub use filters_blocks::FiltersBlocks;
pub use peft_config::PeftConfig;
pub(crate) use registry::BASE_LAYER_PATHS;
pub use registry::{register, registered};
pub use settings::Method;

pub use adalora::{AdaLora, AdaLoraConfig, AdaLoraSettings};
pub use ia3::{Ia3, Ia3Config, Ia3Settings};
pub use loha::{Loha, LohaConfig, LohaSettings, LohaStart};
pub use lokr::{Lokr, LokrConfig, LokrInit, LokrSettings, LokrShape};
pub use lora::{EvaConfig, LoftqConfig, Lora, LoraConfig, LoraInit, LoraSettings};
pub use tokens::TrainableTokens;
pub use weight_delta::DeltaSettings;
