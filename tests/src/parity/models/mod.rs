//! The base models of the cases.

mod blocks;
mod conv;
mod language;
mod mlp;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use peft_runtime::prelude::*;
use serde::de::DeserializeOwned;

use super::compare::Errors;
use super::session::Session;
use super::{Case, Failure};

/// A base model of a case.
pub(super) trait CaseModel: Injectable + Sized {
    /// Its sizes.
    type Config: DeserializeOwned;

    /// Builds it from the case's weights.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    fn build(config: &Self::Config, vb: VarBuilder<'_>) -> candle_core::Result<Self>;

    /// The output for the case's `x`.
    ///
    /// # Errors
    /// If the input does not fit.
    fn output(&self, x: &Tensor, attention_mask: Option<&Tensor>) -> candle_core::Result<Tensor>;
}

/// Replays the case on the model it names.
pub(super) fn run(case: &Case) -> Result<Errors, Failure> {
    match case.model.as_str() {
        "mlp" => run_on::<mlp::Mlp>(case),
        "blocks" => run_on::<blocks::Blocks>(case),
        "emb_conv1d" => run_on::<mlp::EmbConv1d>(case),
        "conv1d" => run_on::<conv::Conv1dModel>(case),
        "conv2d" => run_on::<conv::Conv2dModel>(case),
        "tiny_bert" => run_on::<language::TinyBert>(case),
        other => Err(Failure::of_case(&case.name, format!("the model `{other}` is not known"))),
    }
}

fn run_on<M: CaseModel>(case: &Case) -> Result<Errors, Failure> {
    let build = || -> Result<M, String> {
        let config = serde_json::from_value(case.model_config.clone())
            .map_err(|error| format!("model_config: {error}"))?;
        let vb = case.base()?.var_builder(DType::F32, &Device::Cpu);
        M::build(&config, vb).map_err(|error| error.to_string())
    };
    let model = build().map_err(|reason| Failure::of_case(&case.name, reason))?;
    Session::new(case, model).replay()
}
