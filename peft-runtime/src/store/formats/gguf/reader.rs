//! Reads llama.cpp's adapters.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use serde_json::Map;

use super::architecture::{ALL_EXPERTS, Architecture, EMBEDDING, ModelConfig, architecture_names};
use crate::error::{AdapterFileError, Error, Result};
use crate::store::formats::base::Base;
use crate::store::formats::format::{AdapterFormat, Imported};
use crate::store::formats::low_rank::{self, Pair};
use crate::store::formats::source::Source;
use crate::store::rotary_rows::in_halves;

/// llama.cpp's format.
pub(in crate::store) struct Gguf;

/// The keys of the metadata.
pub(super) const TYPE: &str = "general.type";
pub(super) const ARCHITECTURE: &str = "general.architecture";
pub(super) const ADAPTER_TYPE: &str = "adapter.type";
pub(super) const ALPHA: &str = "adapter.lora.alpha";
const INVOCATION: &str = "adapter.alora.invocation_tokens";

impl AdapterFormat for Gguf {
    fn name(&self) -> &'static str {
        "gguf"
    }

    fn recognises(&self, source: &Source) -> bool {
        source.is_gguf()
    }

    fn read(&self, source: &Source, base: Option<&Base>) -> Result<Imported> {
        check_type(source)?;
        let file = File {
            source,
            architecture: architecture(source)?,
            model: model(source, base)?,
            alpha: alpha(source)?,
        };
        let mut weights: BTreeSet<&str> = BTreeSet::new();
        for name in source.names() {
            let weight = [".lora_a", ".lora_b"].iter().find_map(|end| name.strip_suffix(end));
            let weight = weight.ok_or_else(|| {
                key(name, "is neither `lora_a` nor `lora_b`, which are all that llama.cpp uses")
            })?;
            weights.insert(weight);
        }
        let pairs = weights.into_iter().map(|weight| file.pairs(weight)).collect::<Result<Vec<_>>>()?;
        let pairs: BTreeMap<String, Pair> = pairs.into_iter().flatten().collect();
        low_rank::adapter(pairs, Map::new())
    }
}

/// Refuses files that are not adapters of LoRA's.
fn check_type(source: &Source) -> Result<()> {
    let metadata = source.metadata();
    for (name, expected) in [(TYPE, "adapter"), (ADAPTER_TYPE, "lora")] {
        match metadata.get(name).map(String::as_str) {
            Some(found) if found == expected => {}
            Some(found) => {
                return Err(field(name, format!("is `{found}`; that of an adapter of LoRA is `{expected}`")));
            }
            None => {
                return Err(field(name, format!("is missing; that of an adapter of LoRA is `{expected}`")));
            }
        }
    }
    match metadata.get(INVOCATION) {
        Some(_) => {
            Err(field(INVOCATION, "makes the adapter act only behind certain tokens, which is not supported"))
        }
        None => Ok(()),
    }
}

fn architecture(source: &Source) -> Result<&'static str> {
    let name = source.metadata().get(ARCHITECTURE).map(String::as_str).unwrap_or_default();
    let known = Architecture::named(name).map(|known| known.name);
    known.ok_or_else(|| field(ARCHITECTURE, format!("is `{name}`, whose names of tensors are not known")))
}

/// The base model's config, if there is one, which must be of the file's architecture.
fn model(source: &Source, base: Option<&Base>) -> Result<Option<ModelConfig>> {
    let Some(config) = base.and_then(|base| base.config.as_ref()) else { return Ok(None) };
    let model = ModelConfig::of(config).map_err(|model_type| {
        let reason = format!(
            "of the base model is `{model_type}`; adapters in GGUF are read for {}",
            architecture_names()
        );
        field("model_type", reason)
    })?;
    let (found, expected) = (architecture(source)?, model.architecture.name);
    if found != expected {
        let reason = format!("it is for a `{found}` of llama.cpp's, and the base model is a `{expected}`");
        return Err(AdapterFileError::NothingForBase { reason }.into());
    }
    Ok(Some(model))
}

/// Alpha, if it is not off.
fn alpha(source: &Source) -> Result<Option<f64>> {
    let Some(text) = source.metadata().get(ALPHA) else { return Ok(None) };
    match text.parse::<f32>() {
        Ok(alpha) if alpha.is_finite() => Ok((alpha != 0.0).then_some(f64::from(alpha))),
        _ => Err(field(ALPHA, format!("is {text}; it must be a finite number"))),
    }
}

/// A file whose metadata are read.
struct File<'s> {
    source: &'s Source,
    architecture: &'static str,
    model: Option<ModelConfig>,
    alpha: Option<f64>,
}

impl File<'_> {
    /// The modules and factors of the weight that llama.cpp calls `weight`: one, or one for each expert.
    fn pairs(&self, weight: &str) -> Result<Vec<(String, Pair)>> {
        let tensor = |end: &str| -> Result<Tensor> {
            let name = format!("{weight}.{end}");
            self.source.tensor(&name)?.ok_or_else(|| key(&name, "is missing"))
        };
        let (mut a, mut b) = (tensor("lora_a")?, tensor("lora_b")?);
        let a_key = format!("{weight}.lora_a");
        let known = match &self.model {
            Some(model) => Some(model.architecture),
            None => Architecture::named(self.architecture),
        };
        let name = weight.strip_suffix(".weight").unwrap_or(weight);
        let Some((architecture, path)) = known.and_then(|known| Some((known, known.module(name)?))) else {
            let reason = format!("is on a weight of which a `{}` has none of that name", self.architecture);
            return Err(key(&a_key, reason));
        };
        if a.rank() == 3 {
            return low_rank::of_experts(&path, ALL_EXPERTS, (&a, &b), |rank| self.alpha_of(rank));
        }
        let is_embedding = name == EMBEDDING;
        if is_embedding {
            a = a.t()?.contiguous()?;
        }
        let rank = match (a.dims(), b.dims()) {
            ([rank, _], [_, other]) if rank == other => *rank,
            (a, b) => {
                return Err(key(
                    &a_key,
                    format!("has shape {a:?}, and `lora_b` has {b:?}; they have no rank in common"),
                ));
            }
        };
        if architecture.reorders(name) {
            let heads = self.heads(weight, name)?;
            b = in_halves(&b, heads)?.ok_or_else(|| {
                let reason = format!(
                    "has {:?} rows, which do not divide into pairs for {heads} heads",
                    b.dim(0).unwrap_or_default()
                );
                key(&format!("{weight}.lora_b"), reason)
            })?;
        }
        let alpha = self.alpha_of(rank);
        Ok(vec![(path, Pair { a, b, alpha, lengths: None, is_embedding })])
    }

    /// The alpha of a layer of this rank: without one, the scale is 1.
    fn alpha_of(&self, rank: usize) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
        self.alpha.unwrap_or(rank as f64)
    }

    /// The number of heads of a weight whose rows are in another order.
    fn heads(&self, weight: &str, name: &str) -> Result<usize> {
        let heads = self.model.as_ref().and_then(|model| model.heads_of(name));
        heads.filter(|heads| *heads > 0).ok_or_else(|| {
            let reason = format!(
                "the rows of `{weight}` are in the order of a `{}` of llama.cpp's, and how many heads they belong to is in the base \
                 model's `config.json`",
                self.architecture
            );
            AdapterFileError::NeedsBase { reason }.into()
        })
    }
}

pub(super) fn key(key: &str, reason: impl Into<String>) -> Error {
    AdapterFileError::Key { key: key.to_owned(), reason: reason.into() }.into()
}

pub(super) fn field(name: &str, reason: impl Into<String>) -> Error {
    AdapterFileError::Field { field: name.to_owned(), reason: reason.into() }.into()
}
