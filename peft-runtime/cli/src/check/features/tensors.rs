//! What the tensors are on, and how large.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Search;
use crate::check::feature::Feature;
use crate::check::keys::{Key, Part};

/// The output layer's names in transformers.
const HEADS: [&str; 3] = ["lm_head", "embed_out", "output"];
/// Embeddings' names in transformers.
const EMBEDDINGS: [&str; 5] = ["embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings"];

impl Search<'_> {
    /// Parameters of the base model that the file has.
    pub(super) fn parameters(&mut self) {
        let names = |field: &str| -> Vec<String> {
            let values = self.adapter.field(field).and_then(Value::as_array).into_iter().flatten();
            values.filter_map(|value| value.as_str().map(str::to_owned)).collect()
        };
        let saved = names("modules_to_save");
        let has_bias = self.adapter.field("bias").and_then(Value::as_str).is_some_and(|bias| bias != "none");
        let mut sorts: BTreeMap<Feature, Vec<String>> = BTreeMap::new();
        for (name, key) in &self.keys {
            let is_copy =
                saved.iter().any(|saved| key.path == *saved || key.path.ends_with(&format!(".{saved}")))
                    || name.contains("modules_to_save")
                    || name.contains("original_module");
            let is_word = HEADS.iter().chain(&EMBEDDINGS).any(|word| key.module() == *word);
            let feature = match (key.part, key.parameter.as_str()) {
                (Part::Parameter, _) if is_copy && key.module().contains("norm") => Feature::NormCopies,
                (Part::Parameter, _) if is_copy => Feature::FullCopies,
                (Part::BaseLayer | Part::Parameter, "bias") if has_bias => Feature::BaseBias,
                (Part::BaseLayer, "weight") => Feature::SavedWeights,
                (Part::Parameter, "weight") if is_word => Feature::SavedEmbeddings,
                (Part::BaseLayer | Part::Parameter | Part::Stranger, _) => Feature::Strangers,
                (Part::Tokens, _) => Feature::TrainableTokens,
                _ => continue,
            };
            sorts.entry(feature).or_default().push(name.clone());
        }
        let mut take = |feature| sorts.remove(&feature).unwrap_or_default();
        let (copies, norms) = (take(Feature::FullCopies), take(Feature::NormCopies));
        let only_norms = copies.is_empty() && !norms.is_empty();
        let listed = format!("modules trained in full (`modules_to_save`: {})", saved.join(", "));
        self.add_if(Feature::FullCopies, &listed, copies, !saved.is_empty() && !only_norms);
        self.add_if(Feature::NormCopies, "normalisations trained in full (`modules_to_save`)", norms, false);
        self.add_if(
            Feature::BaseBias,
            "biases of the base model (`bias`)",
            take(Feature::BaseBias),
            has_bias,
        );
        let (weights, words) = (take(Feature::SavedWeights), take(Feature::SavedEmbeddings));
        self.add_if(Feature::SavedWeights, "weights of the base model (`base_layer`)", weights, false);
        self.add_if(Feature::SavedEmbeddings, "weights of embeddings or output layers", words, false);
        let tokens = self.is_filled("trainable_token_indices");
        self.add_if(
            Feature::TrainableTokens,
            "trained rows of embeddings (`trainable_token_indices`)",
            take(Feature::TrainableTokens),
            tokens,
        );
        self.add_if(
            Feature::Strangers,
            "tensors that belong to no module of the adapter",
            take(Feature::Strangers),
            false,
        );
    }

    /// What the factors are on.
    pub(super) fn factors(&mut self) {
        let is_factor = |key: &Key| matches!(key.part, Part::A | Part::B);
        let is_expert = |key: &Key| key.path.split('.').any(|segment| segment == "experts");
        let bare: Vec<&str> = self
            .adapter
            .field("target_parameters")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let is_bare = bare.iter().any(|name| !name.split('.').any(|segment| segment == "experts"));
        let experts = self.tensors(|key| is_factor(key) && is_expert(key));
        self.add_if(Feature::Experts, "factors of experts", experts, !bare.is_empty() && !is_bare);
        if is_bare {
            self.add(
                Feature::BareParameters,
                format!("factors of bare parameters (`target_parameters`: {})", bare.join(", ")),
                Vec::new(),
            );
        }
        let embeddings = self.tensors(|key| matches!(key.part, Part::EmbeddingA | Part::EmbeddingB));
        self.add_if(Feature::Embedding, "factors of an embedding", embeddings, false);
        let heads = self
            .tensors(|key| is_factor(key) && HEADS.contains(&key.module()) && !key.path.contains("layer"));
        self.add_if(Feature::Head, "factors of the output layer", heads, false);
        let is_wide = |name: &String| {
            self.adapter.tensors.iter().any(|tensor| tensor.key == *name && tensor.shape.len() > 2)
        };
        let convolutions: Vec<String> =
            self.tensors(|key| is_factor(key) && !is_expert(key)).into_iter().filter(is_wide).collect();
        self.add_if(Feature::Convolution, "factors of convolutions", convolutions, false);
        if self.is_lora() {
            let parts = |part: Part| -> BTreeSet<&str> {
                self.keys
                    .iter()
                    .filter(|(_, key)| key.part == part)
                    .map(|(_, key)| key.path.as_str())
                    .collect()
            };
            let half: BTreeSet<&str> = [(Part::A, Part::B), (Part::EmbeddingA, Part::EmbeddingB)]
                .into_iter()
                .flat_map(|(a, b)| parts(a).symmetric_difference(&parts(b)).copied().collect::<Vec<_>>())
                .collect();
            let half: Vec<String> = self.tensors(|key| is_factor(key) && half.contains(key.path.as_str()));
            self.add_if(Feature::HalfPairs, "a factor without the other one", half, false);
        }
    }

    /// The ranks of the factors by path, without those of experts, of which a tensor has many.
    pub(super) fn ranks(&self) -> BTreeMap<&str, usize> {
        let is_a = |key: &Key| matches!(key.part, Part::A | Part::EmbeddingA);
        let is_expert = |key: &Key| key.path.split('.').any(|segment| segment == "experts");
        let keys =
            self.keys.iter().zip(&self.adapter.tensors).filter(|((_, key), _)| is_a(key) && !is_expert(key));
        keys.filter_map(|((_, key), tensor)| Some((key.path.as_str(), *tensor.shape.first()?))).collect()
    }

    pub(super) fn sizes(&mut self) {
        let ranks: BTreeSet<usize> = self.ranks().into_values().collect();
        if self.is_lora() && ranks.len() > 1 {
            let listed: Vec<String> = ranks.iter().map(usize::to_string).collect();
            self.add(Feature::MixedRanks, format!("ranks that differ: {}", listed.join(", ")), Vec::new());
        }
        let alpha = self.adapter.field("lora_alpha").and_then(Value::as_f64);
        let patterns = self.adapter.field("alpha_pattern").and_then(Value::as_object);
        if patterns.is_some_and(|patterns| patterns.values().any(|value| value.as_f64() != alpha)) {
            self.add(Feature::AlphaPattern, "alphas that differ (`alpha_pattern`)", Vec::new());
        }
        if let Some(reason) = &self.adapter.judgement.inconsistent {
            let what = format!("tensors that do not fit the config ({reason})");
            self.add(Feature::Inconsistent, what, Vec::new());
        }
    }
}
