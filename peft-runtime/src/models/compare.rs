//! Whether a merged model computes what base model and adapters compute.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Result as CandleResult, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use serde::Deserialize;
use serde_json::{Value, json};

use super::bert::{BertConfig, BertModel};
use super::folder::read_config;
use super::gpt2::{Gpt2Config, Gpt2Model};
use super::llama::{LlamaConfig, LlamaModel};
use crate::error::{Error, Result};
use crate::manage::is_finite;
use crate::model::PeftModel;
use crate::module::Injectable;
use crate::store::{ModelWeights, StoredAdapter, StoredKind, load_stored_adapter, read_text};

/// How many tokens are compared.
const TOKENS: usize = 6;

/// What came of comparing a merged model with base model and adapters.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Comparison {
    /// Both compute the same.
    Same(Closeness),
    /// They were not compared, for this reason.
    NotCompared(String),
}

/// How close the outputs of two models are: logits, or of BERT the last hidden states.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Closeness {
    /// The number of tokens that were compared.
    pub tokens: usize,
    /// The largest difference of two outputs, over the largest output.
    pub difference: f64,
    /// The most that it may be: 1e-4 for weights in f32 and f64, 1e-2 for f16 and 5e-2 for bf16, to which merging rounds.
    pub tolerance: f64,
    /// How much the adapters change the outputs of the base model, over the largest output.
    pub effect: f64,
}

/// A model that can be compared.
trait Compared: Injectable + Sized {
    /// Builds the model from its `config.json` and the tensors of a builder.
    fn build(config: &Value, vb: VarBuilder<'_>) -> Result<Self>;

    /// The outputs for token ids `[1, length]`.
    fn outputs(&self, ids: &Tensor) -> CandleResult<Tensor>;

    /// The model in a folder, in single precision, with some of the tensors replaced.
    fn load(folder: &Path, config: &Value, replaced: BTreeMap<String, Tensor>) -> Result<Self> {
        let weights = Replaced { weights: ModelWeights::open(folder)?, replaced };
        let vb = VarBuilder::from_backend(Box::new(weights), DType::F32, Device::Cpu);
        Self::build(config, vb).map_err(|error| error.in_file(folder))
    }
}

macro_rules! compared {
    ($model:ty, $config:ty, $prefix:literal, $outputs:expr) => {
        impl Compared for $model {
            fn build(config: &Value, vb: VarBuilder<'_>) -> Result<Self> {
                let config = <$config>::deserialize(config).map_err(Error::ModelConfig)?;
                Ok(Self::new(&config, below(vb, $prefix))?)
            }

            fn outputs(&self, ids: &Tensor) -> CandleResult<Tensor> {
                $outputs(self, ids)
            }
        }
    };
}

compared!(LlamaModel, LlamaConfig, "", |model: &LlamaModel, ids: &Tensor| model.forward(ids, None));
compared!(Gpt2Model, Gpt2Config, "", |model: &Gpt2Model, ids: &Tensor| model.forward(ids, None));
compared!(BertModel, BertConfig, "bert", |model: &BertModel, ids: &Tensor| model.forward(ids, None, None));

/// The builder below `prefix`, if the embeddings are there.
fn below<'v>(vb: VarBuilder<'v>, prefix: &str) -> VarBuilder<'v> {
    let inner = vb.pp(prefix);
    if inner.contains_tensor("embeddings.word_embeddings.weight") { inner } else { vb }
}

/// Compares the merged model in the folder `merged` with the base model in the folder `base` and adapters, each with the factor of
/// its scaling, on a few tokens. Both models are loaded one after the other, in single precision.
///
/// # Errors
/// [`Error::Verification`] if they do not compute the same, and an error that names the file if the merged model cannot be read.
pub fn compare_merged(
    base: impl AsRef<Path>,
    adapters: &[(&StoredAdapter, f64)],
    merged: impl AsRef<Path>,
) -> Result<Comparison> {
    let (base, merged) = (base.as_ref(), merged.as_ref());
    let path = base.join("config.json");
    if !path.is_file() {
        return Ok(Comparison::NotCompared(format!("there is no `{}`", path.display())));
    }
    let config: Value = match serde_json::from_str(&read_text(&path)?) {
        Ok(config) => config,
        Err(error) => return Ok(Comparison::NotCompared(format!("`{}`: {error}", path.display()))),
    };
    match config.get("model_type").and_then(Value::as_str) {
        Some("llama" | "mistral" | "qwen2" | "qwen3") => {
            compare::<LlamaModel>(base, adapters, merged, &config)
        }
        Some("gpt2") => compare::<Gpt2Model>(base, adapters, merged, &config),
        Some("bert") => compare::<BertModel>(base, adapters, merged, &config),
        model_type => Ok(Comparison::NotCompared(format!(
            "this library has no model of the type `{}`; it has bert, gpt2, llama, mistral, qwen2 and qwen3",
            model_type.unwrap_or_default()
        ))),
    }
}

fn compare<M: Compared>(
    base: &Path,
    adapters: &[(&StoredAdapter, f64)],
    merged: &Path,
    config: &Value,
) -> Result<Comparison> {
    let (config, resized) = resized(base, config, adapters)?;
    let ids = some_ids(&config)?;
    let before = match adapted::<M>(base, &config, resized, adapters, &ids) {
        Ok(outputs) => outputs,
        Err(error) => {
            let reason = format!("the base model with the adapters does not run: {}", error.chain());
            return Ok(Comparison::NotCompared(reason));
        }
    };
    let [plain, expected] = before;
    let found = M::load(merged, &read_config(merged)?, BTreeMap::new())?
        .outputs(&ids)
        .map_err(|error| Error::from(error).in_file(merged))?;
    let largest = largest(&expected)?.max(f64::MIN_POSITIVE);
    let closeness = Closeness {
        tokens: ids.elem_count(),
        difference: distance(&expected, &found)? / largest,
        tolerance: tolerance(merged)?,
        effect: distance(&expected, &plain)? / largest,
    };
    if closeness.difference <= closeness.tolerance {
        return Ok(Comparison::Same(closeness));
    }
    let reason = format!(
        "it does not compute what the base model with the adapters does: on {} tokens the outputs differ by {:.1e} of the largest \
         one, and {:.0e} is the most that rounding explains",
        closeness.tokens, closeness.difference, closeness.tolerance
    );
    Err(Error::Verification { path: merged.to_owned(), reason })
}

/// The outputs of the base model, without the adapters and with them.
fn adapted<M: Compared>(
    base: &Path,
    config: &Value,
    resized: BTreeMap<String, Tensor>,
    adapters: &[(&StoredAdapter, f64)],
    ids: &Tensor,
) -> Result<[Tensor; 2]> {
    let mut model = M::load(base, config, resized)?;
    let plain = model.outputs(ids)?;
    let names: Vec<String> = (1..=adapters.len()).map(|number| format!("adapter-{number}")).collect();
    for ((adapter, weight), name) in adapters.iter().zip(&names) {
        load_stored_adapter(&mut model, adapter, name)?;
        if *weight != 1.0 {
            model.scale_adapter(name, *weight)?;
        }
    }
    model.set_adapters(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    model.eval();
    Ok([plain, model.outputs(ids)?])
}

/// The config and the weights of a base model whose vocabulary was resized before the adapters were trained: the adapters' files
/// have the whole embeddings then.
fn resized(
    base: &Path,
    config: &Value,
    adapters: &[(&StoredAdapter, f64)],
) -> Result<(Value, BTreeMap<String, Tensor>)> {
    let (mut config, mut weights) = (config.clone(), BTreeMap::new());
    let own = config.get("vocab_size").and_then(Value::as_u64);
    let shapes = ModelWeights::open(base)?.shapes().into_iter().map(|tensor| (tensor.key, tensor.shape));
    let shapes: BTreeMap<String, Vec<usize>> = shapes.collect();
    let rows_of = |dims: &[usize]| dims.first().map(|rows| *rows as u64);
    for (adapter, _) in adapters {
        for layer in adapter.layers()?.iter().filter(|layer| !matches!(layer.kind, StoredKind::Adapter(_))) {
            for (_, tensor) in layer.tensors.iter().filter(|(end, _)| end == "weight") {
                let name = format!("{}.weight", layer.path);
                let before = shapes.get(&name).and_then(|dims| rows_of(dims));
                let rows = rows_of(tensor.dims());
                if before.is_some() && before == own && rows != own {
                    config["vocab_size"] = json!(rows);
                    weights.insert(name, tensor.clone());
                }
            }
        }
    }
    Ok((config, weights))
}

/// Token ids from all over the vocabulary, `[1, tokens]`.
fn some_ids(config: &Value) -> Result<Tensor> {
    let size = config.get("vocab_size").and_then(Value::as_u64).and_then(|size| u32::try_from(size).ok());
    let last = size.unwrap_or(1).saturating_sub(1);
    let step = |number: usize| (f64::from(last) * number as f64 / (TOKENS - 1) as f64) as u32;
    Ok(Tensor::from_iter((0..TOKENS).map(step), &Device::Cpu)?.unsqueeze(0)?)
}

fn largest(outputs: &Tensor) -> Result<f64> {
    Ok(f64::from(outputs.to_dtype(DType::F32)?.abs()?.max_all()?.to_scalar::<f32>()?))
}

fn distance(first: &Tensor, second: &Tensor) -> Result<f64> {
    if first.dims() != second.dims() {
        return Ok(f64::INFINITY);
    }
    let difference = (first - second)?;
    // candle's maximum passes over NaN.
    if is_finite(&difference)? { largest(&difference) } else { Ok(f64::INFINITY) }
}

/// How close the outputs have to be, by the least precise floats of the merged weights.
fn tolerance(merged: &Path) -> Result<f64> {
    let weights = ModelWeights::open(merged)?;
    let of = |dtype: &str| match dtype {
        "BF16" => 5e-2,
        "F16" => 1e-2,
        _ => 1e-4,
    };
    Ok(weights.dtypes().iter().map(|dtype| of(dtype)).fold(1e-4, f64::max))
}

/// The weights of a folder, some of them replaced.
struct Replaced {
    weights: ModelWeights,
    replaced: BTreeMap<String, Tensor>,
}

impl SimpleBackend for Replaced {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> CandleResult<Tensor> {
        match self.replaced.get(name) {
            Some(tensor) if *tensor.shape() == shape => tensor.to_dtype(dtype)?.to_device(device),
            _ => self.weights.get(shape, name, init, dtype, device),
        }
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> CandleResult<Tensor> {
        match self.replaced.get(name) {
            Some(tensor) => tensor.to_dtype(dtype)?.to_device(device),
            None => self.weights.get_unchecked(name, dtype, device),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.replaced.contains_key(name) || self.weights.contains_tensor(name)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::distance;

    #[test]
    fn nan_is_never_close() {
        let of = |values: [f32; 3]| Tensor::new(&values, &Device::Cpu).unwrap();
        assert!((distance(&of([1., 2., 3.]), &of([1., 2.5, 3.])).unwrap() - 0.5).abs() < 1e-6);
        for values in [[f32::NAN, 2., 3.], [1., f32::NAN, 3.], [1., 2., f32::NAN]] {
            assert_eq!(distance(&of([1., 2., 3.]), &of(values)).unwrap(), f64::INFINITY);
        }
    }
}
