//! Pairs of factors of linear layers and embeddings, as PEFT would have written them.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::{Map, Value, json};

use super::Imported;
use crate::error::{AdapterFileError, Error, Result};
use crate::method::PeftConfig;

/// The factors of one module.
pub(super) struct Pair {
    /// A `[rank, in]`; of an embedding `[rank, vocabulary]`.
    pub(super) a: Tensor,
    /// B `[out, rank]`; of an embedding `[features, rank]`.
    pub(super) b: Tensor,
    /// The update is alpha / rank · B·A.
    pub(super) alpha: f64,
    /// DoRA's lengths `[out]`.
    pub(super) lengths: Option<Tensor>,
    pub(super) is_embedding: bool,
}

/// The alpha with which alpha / rank is `scale`, as nearly as numbers go.
pub(super) fn alpha_for(scale: f64, rank: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
    let rank = rank as f64;
    let alpha = scale * rank;
    let exact = [alpha, alpha.next_up(), alpha.next_down()].into_iter().find(|alpha| alpha / rank == scale);
    exact.unwrap_or(alpha)
}

/// The pairs of the single experts of a layer, out of factors A `[experts, rank, in]` and B `[experts, out, rank]`. In the layer's
/// path the module of all experts is called `all`.
///
/// # Errors
/// If the factors do not go together, or the path is not that of a layer of experts.
pub(super) fn of_experts(
    path: &str,
    all: &str,
    (a, b): (&Tensor, &Tensor),
    alpha: impl Fn(usize) -> f64,
) -> Result<Vec<(String, Pair)>> {
    let wrong = |reason: String| -> Error { AdapterFileError::Key { key: path.to_owned(), reason }.into() };
    let rank = match (a.dims(), b.dims()) {
        ([experts, rank, _], [others, _, other]) if (experts, rank) == (others, other) => *rank,
        (a, b) => {
            let reason = format!(
                "has factors of shapes {a:?} and {b:?}; they must be [experts, rank, in] and [experts, out, rank]"
            );
            return Err(wrong(reason));
        }
    };
    let split = path.split_once(&format!(".{all}."));
    let Some((block, name)) = split.filter(|(_, name)| PROJECTIONS.iter().any(|(known, _)| known == name))
    else {
        return Err(wrong(
            "has three dimensions, as layers of experts have, and is not one of theirs".to_owned(),
        ));
    };
    // Mixtral's layers have names of their own.
    let of_mixtral = PROJECTIONS.iter().find(|(known, _)| *known == name).map(|(_, own)| *own);
    let name = of_mixtral.filter(|_| block.ends_with("block_sparse_moe")).unwrap_or(name);
    let pair = |expert: usize| -> Result<(String, Pair)> {
        let (a, b) = (a.get(expert)?.contiguous()?, b.get(expert)?.contiguous()?);
        let pair = Pair { a, b, alpha: alpha(rank), lengths: None, is_embedding: false };
        Ok((format!("{block}.experts.{expert}.{name}"), pair))
    };
    (0..a.dim(0)?).map(pair).collect()
}

/// What layers of experts are called, and what Mixtral calls them.
const PROJECTIONS: [(&str, &str); 3] = [("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")];

/// An adapter of `pairs` by the paths of their modules, with `fields` in its config besides.
pub(super) fn adapter(pairs: BTreeMap<String, Pair>, fields: Map<String, Value>) -> Result<Imported> {
    let ranks: BTreeMap<&str, f64> = pairs.iter().map(|(path, pair)| (path.as_str(), pair.rank())).collect();
    let alphas: BTreeMap<&str, f64> = pairs.iter().map(|(path, pair)| (path.as_str(), pair.alpha)).collect();
    let ((rank, rank_pattern), (alpha, alpha_pattern)) = (numbers(&ranks), numbers(&alphas));
    let mut config = json!({
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": rank_pattern,
        "lora_alpha": alpha,
        "alpha_pattern": alpha_pattern,
        "use_dora": pairs.values().any(|pair| pair.lengths.is_some()),
        "target_modules": pairs.keys().collect::<Vec<_>>(),
        "inference_mode": true,
    });
    if let Some(config) = config.as_object_mut() {
        config.extend(fields);
    }
    let mut tensors = BTreeMap::new();
    for (path, pair) in pairs {
        let [a, b] = match pair.is_embedding {
            true => ["lora_embedding_A", "lora_embedding_B"],
            false => ["lora_A.weight", "lora_B.weight"],
        };
        tensors.insert(format!("{path}.{a}"), pair.a);
        tensors.insert(format!("{path}.{b}"), pair.b);
        if let Some(lengths) = pair.lengths {
            tensors.insert(format!("{path}.lora_magnitude_vector"), lengths);
        }
    }
    Ok(Imported { config: PeftConfig::from_json(&config.to_string())?, tensors, left_out: Vec::new() })
}

impl Pair {
    fn rank(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
        let rank = self.a.dims().first().copied().unwrap_or_default() as f64;
        rank
    }
}

/// The number that most modules have, and patterns for the others.
fn numbers(values: &BTreeMap<&str, f64>) -> (Value, Value) {
    let mut counts: Vec<(f64, usize)> = Vec::new();
    for value in values.values() {
        match counts.iter_mut().find(|(known, _)| known == value) {
            Some((_, count)) => *count += 1,
            None => counts.push((*value, 1)),
        }
    }
    let most = counts.iter().fold((1.0, 0), |most, next| if next.1 > most.1 { *next } else { most }).0;
    let others = values.iter().filter(|(_, value)| **value != most);
    let patterns: Map<String, Value> =
        others.map(|(path, value)| (format!("^{}", path.replace('.', r"\.")), number(*value))).collect();
    (number(most), Value::Object(patterns))
}

/// A whole number as one, which ranks have to be.
fn number(value: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "it has no fraction and fits")]
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

#[cfg(test)]
mod tests {
    use super::alpha_for;

    #[test]
    fn alpha_over_the_rank_is_the_scale() {
        assert_eq!(alpha_for(20.0, 8), 160.0);
        for (scale, rank) in [(0.1, 3), (10.0, 7), (1.3, 12), (2.0 / 3.0, 64)] {
            let found = alpha_for(scale, rank) / f64::from(u32::try_from(rank).unwrap());
            assert!((found - scale).abs() <= scale * f64::EPSILON, "{scale} {rank} {found}");
        }
    }
}
