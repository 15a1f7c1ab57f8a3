//! Adapters of mlx-lm: `PATH.lora_a` `[in, rank]` and `PATH.lora_b` `[rank, out]`, with a scale in the config.
//!
//! The update is scale · (A·B)ᵀ, the scale not divided by the rank. An embedding's factors are those of its rows: its update is
//! scale · A·B. The experts of a mixture, `switch_mlp`, have A `[experts, rank, in]` and B `[experts, out, rank]`. DoRA adds `m`,
//! the lengths of the rows.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use serde_json::{Map, Value};

use super::fit;
use super::low_rank::{self, Pair, alpha_for};
use super::{AdapterFormat, Base, Imported, Source};
use crate::error::{AdapterFileError, Error, Result};

/// mlx-lm's format.
pub(super) struct Mlx;

/// Where the config has rank, scale and keys.
const SETTINGS: &str = "lora_parameters";

/// What mlx-lm calls the module of all experts.
const EXPERTS: &str = "switch_mlp";

/// What embeddings are called.
const EMBEDDINGS: [&str; 6] =
    ["embed_tokens", "embed_in", "embeddings", "tok_embeddings", "word_embeddings", "wte"];

impl AdapterFormat for Mlx {
    fn name(&self) -> &'static str {
        "mlx"
    }

    fn recognises(&self, source: &Source) -> bool {
        let by_config = source.config().is_some_and(|config| {
            config.get("peft_type").is_none() && config.get(SETTINGS).is_some_and(Value::is_object)
        });
        let is_factor = |name: &&str| split(name).is_some_and(|(_, end)| end != LENGTHS);
        by_config || fine_tune_type(source) == Some(FULL) || source.names().iter().any(is_factor)
    }

    fn read(&self, source: &Source, base: Option<&Base>) -> Result<Imported> {
        match fine_tune_type(source) {
            None | Some("lora" | "dora") => read_factors(source, base),
            Some(FULL) => {
                let reason =
                    "is `full`: the file has weights and no adapter; make a model of them with `mlx_lm.fuse`";
                Err(field("fine_tune_type", reason))
            }
            Some(other) => {
                let reason = format!("is `{other}`; it must be `lora`, `dora` or `full`");
                Err(field("fine_tune_type", reason))
            }
        }
    }
}

/// The `fine_tune_type` of parameters that are trained themselves.
const FULL: &str = "full";

/// The end of the key of DoRA's lengths.
const LENGTHS: &str = "m";

fn fine_tune_type(source: &Source) -> Option<&str> {
    let config = source.config().filter(|config| config.get("peft_type").is_none())?;
    config.get("fine_tune_type")?.as_str()
}

/// A key as the module and what the tensor is to it.
fn split(key: &str) -> Option<(&str, &str)> {
    let (path, end) = key.rsplit_once('.')?;
    ["lora_a", "lora_b", LENGTHS].contains(&end).then_some((path, end))
}

/// The scale, which nothing else in the files tells.
fn scale(source: &Source) -> Result<f64> {
    let settings = source.config().and_then(|config| config.get(SETTINGS));
    let Some(settings) = settings else {
        let reason =
            "is needed for the scale of the updates; put mlx-lm's `adapter_config.json` next to the file";
        return Err(field(SETTINGS, reason));
    };
    match settings.get("scale").map(Value::as_f64) {
        Some(Some(scale)) if scale.is_finite() => Ok(scale),
        Some(_) => Err(field("scale", "must be a finite number")),
        None => {
            let other = if settings.get("alpha").is_some() {
                "; `alpha` is not what mlx-lm multiplies by"
            } else {
                ""
            };
            Err(field(
                "scale",
                format!("is missing in `{SETTINGS}`, and mlx-lm has no default for it{other}"),
            ))
        }
    }
}

fn read_factors(source: &Source, base: Option<&Base>) -> Result<Imported> {
    let scale = scale(source)?;
    let mut modules: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for name in source.names() {
        let Some((path, end)) = split(name) else {
            return Err(key(name, "is none of `lora_a`, `lora_b` and `m`, which adapters of mlx-lm have"));
        };
        modules.entry(path).or_default().insert(end);
    }
    check_rank(source, &modules)?;
    let mut pairs = BTreeMap::new();
    for path in modules.keys() {
        match source.shape(&format!("{path}.lora_a")) {
            Some([_, _, _]) => pairs.extend(experts(source, path, scale)?),
            _ => {
                pairs.insert((*path).to_owned(), pair(source, base, path, scale)?);
            }
        }
    }
    low_rank::adapter(pairs, common_fields(source))
}

/// An error if the config has another rank than the factors: mlx-lm would not load them.
fn check_rank(source: &Source, modules: &BTreeMap<&str, BTreeSet<&str>>) -> Result<()> {
    let settings = source.config().and_then(|config| config.get(SETTINGS));
    let Some(said) = settings.and_then(|settings| settings.get("rank")).and_then(Value::as_u64) else {
        return Ok(());
    };
    for path in modules.keys() {
        let name = format!("{path}.lora_a");
        let rank = match source.shape(&name) {
            Some([_, rank] | [_, rank, _]) => *rank,
            _ => continue,
        };
        if u64::try_from(rank) != Ok(said) {
            let reason = format!("is {said} in `{SETTINGS}`, and `{name}` has the rank {rank}");
            return Err(field("rank", reason));
        }
    }
    Ok(())
}

fn pair(source: &Source, base: Option<&Base>, path: &str, scale: f64) -> Result<Pair> {
    let tensor = |end: &str| -> Result<(String, Tensor)> {
        let name = format!("{path}.{end}");
        let tensor = source
            .tensor(&name)?
            .ok_or_else(|| key(&name, "is missing next to the other tensors of the module"))?;
        Ok((name, tensor))
    };
    let ((a_name, a), (_, b)) = (tensor("lora_a")?, tensor("lora_b")?);
    let (rank, lengths) = match (a.dims(), b.dims()) {
        ([_, rank], [other, outputs]) if rank == other => (*rank, *outputs),
        (a, b) => {
            return Err(key(
                &a_name,
                format!("has shape {a:?}, and `lora_b` has {b:?}; they must be [in, rank] and [rank, out]"),
            ));
        }
    };
    let is_embedding = is_embedding(base, path, (a.dims(), b.dims()));
    let m = source.tensor(&format!("{path}.{LENGTHS}"))?;
    if m.is_some() && is_embedding {
        let reason = "has a length for each token, and PEFT's DoRA on an embedding has one for each feature; fuse the adapter with mlx-lm";
        return Err(key(&format!("{path}.{LENGTHS}"), reason));
    }
    if let Some(m) = m.as_ref().filter(|m| m.dims() != [lengths]) {
        return Err(key(
            &format!("{path}.{LENGTHS}"),
            format!("has shape {:?}; it must be [{lengths}]", m.dims()),
        ));
    }
    Ok(Pair {
        a: a.t()?.contiguous()?,
        b: b.t()?.contiguous()?,
        alpha: alpha_for(scale, rank),
        lengths: m,
        is_embedding,
    })
}

/// The factors of the single experts of a layer of a mixture.
fn experts(source: &Source, path: &str, scale: f64) -> Result<Vec<(String, Pair)>> {
    let tensor = |end: &str| -> Result<Tensor> {
        let name = format!("{path}.{end}");
        source.tensor(&name)?.ok_or_else(|| key(&name, "is missing next to the other tensors of the module"))
    };
    let (a, b) = (tensor("lora_a")?, tensor("lora_b")?);
    low_rank::of_experts(path, EXPERTS, (&a, &b), |rank| alpha_for(scale, rank))
}

/// Whether the module is an embedding: by the shape of its weight, or where that does not tell by its name.
fn is_embedding(base: Option<&Base>, path: &str, (a, b): (&[usize], &[usize])) -> bool {
    let by_name = path.rsplit('.').next().is_some_and(|name| EMBEDDINGS.contains(&name));
    let weight = base.and_then(|base| fit::shape_of(base, path, "weight"));
    match (weight, a, b) {
        (Some([rows, columns]), [first, _], [_, last]) if rows != columns => (rows, columns) == (first, last),
        _ => by_name,
    }
}

/// What PEFT's config has in common with mlx-lm's.
fn common_fields(source: &Source) -> Map<String, Value> {
    let mut fields = Map::new();
    let config = source.config();
    if let Some(model) = config.and_then(|config| config.get("model")).filter(|model| model.is_string()) {
        fields.insert("base_model_name_or_path".to_owned(), model.clone());
    }
    fields
}

fn key(key: &str, reason: impl Into<String>) -> Error {
    AdapterFileError::Key { key: key.to_owned(), reason: reason.into() }.into()
}

fn field(name: &str, reason: impl Into<String>) -> Error {
    AdapterFileError::Field { field: name.to_owned(), reason: reason.into() }.into()
}
