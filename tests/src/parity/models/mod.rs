//! The base models of the cases.

mod blocks;
mod conv;
mod gpt2;
mod language;
mod llama;
mod mlp;

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use peft_runtime::prelude::*;
use serde::de::DeserializeOwned;

use super::Case;

/// A base model of a case.
pub(super) trait CaseModel: Injectable + Sized {
    /// Its sizes.
    type Config: DeserializeOwned;

    /// Builds it from the case's weights.
    ///
    /// # Errors
    /// If a tensor is missing or has a different shape.
    fn build(config: &Self::Config, vb: VarBuilder<'_>) -> candle_core::Result<Self>;

    /// The output for the case's `x`.
    ///
    /// # Errors
    /// If the input does not fit.
    fn output(&self, x: &Tensor, attention_mask: Option<&Tensor>) -> candle_core::Result<Tensor>;
}

/// Something to do with a base model, whatever its type.
pub(super) trait ModelTask {
    /// Its result.
    type Outcome;

    /// Does it.
    fn run<M: CaseModel>(self, model: M) -> Self::Outcome;
}

/// Builds the base model that the case names and does the work on it.
///
/// # Errors
/// If the model is unknown, or the case's weights do not fit it.
pub(super) fn with_base_model<T: ModelTask>(case: &Case, task: T) -> Result<T::Outcome, String> {
    Ok(match case.model.as_str() {
        "mlp" => task.run(build::<mlp::Mlp>(case)?),
        "blocks" => task.run(build::<blocks::Blocks>(case)?),
        "emb_conv1d" => task.run(build::<mlp::EmbConv1d>(case)?),
        "conv1d" => task.run(build::<conv::Conv1dModel>(case)?),
        "conv2d" => task.run(build::<conv::Conv2dModel>(case)?),
        "tiny_llama" => task.run(build::<llama::TinyLlama>(case)?),
        "tiny_gpt2" => task.run(build::<gpt2::TinyGpt2>(case)?),
        "tiny_bert" => task.run(build::<language::TinyBert>(case)?),
        other => return Err(format!("the model `{other}` is unknown")),
    })
}

fn build<M: CaseModel>(case: &Case) -> Result<M, String> {
    let config = serde_json::from_value(case.model_config.clone())
        .map_err(|error| format!("model_config: {error}"))?;
    let vb = case.base()?.var_builder(case.dtype(), &Device::Cpu);
    M::build(&config, vb).map_err(|error| error.to_string())
}
