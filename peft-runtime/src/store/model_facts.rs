//! What is known of a base model besides the values of its tensors.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// What is known of a base model besides the values of its tensors.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ModelFacts<'m> {
    /// `config.json` as transformers writes it.
    pub(super) config: Option<&'m Value>,
    /// The shapes of all tensors, where they can be listed.
    pub(super) shapes: Option<&'m BTreeMap<String, Vec<usize>>>,
}

impl<'m> ModelFacts<'m> {
    /// Whether the config is that of a model with an encoder and a decoder.
    pub(super) fn is_encoder_decoder(&self) -> bool {
        self.config.and_then(|config| config.get("is_encoder_decoder")?.as_bool()) == Some(true)
    }

    /// Every `model_type` of the config: a model of several parts has one for each.
    pub(super) fn model_types(&self) -> Vec<&'m str> {
        let mut types = Vec::new();
        for part in self.config.map(parts).unwrap_or_default() {
            types.extend(part.get("model_type").and_then(Value::as_str));
        }
        types
    }

    /// The names of the classes that the weights were saved from.
    pub(super) fn architectures(&self) -> Vec<&'m str> {
        let listed = self.config.and_then(|config| config.get("architectures")?.as_array());
        listed.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// What the config, and that of the language model in it, say under a key.
    pub(super) fn of_language<T>(&self, key: &str, read: fn(&'m Value) -> Option<T>) -> Vec<T> {
        let own = self.config.into_iter();
        let inner = own.clone().flat_map(|config| LANGUAGE.iter().filter_map(move |part| config.get(part)));
        own.chain(inner).filter_map(|part| read(part.get(key)?)).collect()
    }

    /// The shape of the tensor called `name`.
    pub(super) fn shape(&self, name: &str) -> Option<&'m [usize]> {
        self.shapes?.get(name).map(Vec::as_slice)
    }
}

/// The keys of the config of a language model that is a part of a model.
const LANGUAGE: [&str; 4] = ["text_config", "llm_config", "language_config", "decoder"];

/// A config and the configs in it, such as `text_config`.
fn parts(config: &Value) -> Vec<&Map<String, Value>> {
    let Value::Object(own) = config else { return Vec::new() };
    let inner = own.iter().filter(|(key, _)| is_config(key)).map(|(_, value)| value);
    std::iter::once(own).chain(inner.flat_map(parts)).collect()
}

/// Calls `change` with a config and the configs in it.
pub(super) fn for_each_part(config: &mut Value, change: &mut dyn FnMut(&mut Map<String, Value>)) {
    let Value::Object(own) = config else { return };
    for (_, inner) in own.iter_mut().filter(|(key, _)| is_config(key)) {
        for_each_part(inner, change);
    }
    change(own);
}

/// Whether a key has the config of a part of the model.
fn is_config(key: &str) -> bool {
    key.ends_with("_config") || matches!(key, "encoder" | "decoder" | "generator" | "question_encoder")
}

/// The last segment of a path.
pub(super) fn last_segment(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::ModelFacts;

    #[test]
    fn the_parts_of_a_model_have_configs_of_their_own() {
        let config = json!({
            "model_type": "pair", "tie_word_embeddings": false,
            "vision_config": { "tie_word_embeddings": true },
            "text_config": { "model_type": "llama", "tie_word_embeddings": true },
            "decoder": { "model_type": "gpt2" },
            "rope_parameters": { "model_type": "none" },
        });
        let facts = ModelFacts { config: Some(&config), shapes: None };
        let mut types = facts.model_types();
        types.sort_unstable();
        assert_eq!(types, ["gpt2", "llama", "pair"]);
        assert_eq!(facts.of_language("tie_word_embeddings", Value::as_bool), [false, true]);
    }
}
