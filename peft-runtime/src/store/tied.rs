//! Whether the head of a language model has the weight of its embeddings, and which tensors those are.

use serde_json::Value;

use super::model_facts::{ModelFacts, last_segment};

/// Names of embeddings: the right sides of `_tied_weights_keys` of the language models of transformers 5.24.
const TABLES: [&str; 8] = [
    "embed_in",
    "embed_tokens",
    "embeddings",
    "tok_embeddings",
    "tokens_embed",
    "word_embedding",
    "word_embeddings",
    "wte",
];

/// Names of heads: those of the left sides that only heads have.
const HEADS: [&str; 6] =
    ["embed_out", "generator_lm_head", "lm_head", "output_projection", "proj_out", "lm_loss"];

/// Types of models whose configs tie head and embeddings where they do not say it, in transformers 5.24.
const TIED: [&str; 36] = [
    "bert",
    "bloom",
    "camembert",
    "cohere",
    "cohere2",
    "ctrl",
    "decision_transformer",
    "electra",
    "ernie4_5",
    "falcon",
    "falcon_mamba",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gemma3n",
    "gpt-sw3",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "imagegpt",
    "lfm2",
    "mamba",
    "modernbert-decoder",
    "mpt",
    "openai-gpt",
    "opt",
    "recurrent_gemma",
    "roberta",
    "smollm3",
    "starcoder2",
    "vaultgemma",
    "xglm",
    "xlm-roberta",
    "zamba",
    "zamba2",
];

/// Some types of models whose configs then do not tie them.
const SEPARATE: [&str; 24] = [
    "codegen",
    "deepseek_v2",
    "deepseek_v3",
    "exaone",
    "glm",
    "glm4",
    "gpt_neox",
    "gpt_oss",
    "gptj",
    "granite",
    "llama",
    "ministral",
    "mistral",
    "mixtral",
    "nemotron",
    "olmo",
    "olmo2",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "stablelm",
];

/// The key of configs.
pub(super) const KEY: &str = "tie_word_embeddings";

/// The modules of a model whose weights are one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tie {
    /// The embedding.
    pub(super) table: String,
    /// The layer that writes logits.
    pub(super) head: String,
}

impl Tie {
    /// The name of the embedding's weight.
    pub(super) fn table_weight(&self) -> String {
        format!("{}.weight", self.table)
    }

    /// The name of the head's weight.
    pub(super) fn head_weight(&self) -> String {
        format!("{}.weight", self.head)
    }
}

/// What is known of a model's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tying {
    /// It has a weight of its own, there is none, or there is no config to tell.
    Separate,
    /// It has the weight of the embeddings.
    Tied(Tie),
    /// Why it is not known, and the two modules if both have a weight.
    Unknown { reason: String, pair: Option<Tie> },
}

impl Tying {
    /// What the config, and the names of tensors, say about the head; `has` knows the tensors.
    pub(super) fn of(facts: ModelFacts<'_>, has: &dyn Fn(&str) -> bool) -> Self {
        if facts.config.is_none() {
            return Self::Separate;
        }
        let heads = named(facts, has, &HEADS, &COMMON_HEADS);
        let tables = named(facts, has, &TABLES, &COMMON_TABLES);
        if heads.is_empty() && !writes_logits(facts) {
            return Self::Separate;
        }
        let is_tied = match flags(facts) {
            Some(tied) => tied,
            // Without embeddings there is nothing to share: `proj_out` of a diffusion model.
            None if tables.is_empty() && facts.shapes.is_some() => false,
            None => {
                let pair = match (tables.as_slice(), heads.as_slice()) {
                    ([table], [head]) => Some(Tie { table: table.clone(), head: head.clone() }),
                    _ => None,
                };
                let reason = format!("its `config.json` does not say which: write `{KEY}` there");
                return Self::Unknown { reason, pair };
            }
        };
        if !is_tied {
            return Self::Separate;
        }
        if facts.is_encoder_decoder() {
            return Self::unknown("an encoder and a decoder share the table of its embeddings");
        }
        if heads.is_empty() && has_other_head(facts) {
            return Self::unknown("the head of such a model is not called `lm_head`");
        }
        match tables.as_slice() {
            [table] => {
                let own = table.strip_suffix(".embed_tokens").and_then(|path| path.strip_suffix(".model"));
                let named = own.map_or_else(|| "lm_head".to_owned(), |path| format!("{path}.lm_head"));
                let head = heads.first().cloned().unwrap_or(named);
                Self::Tied(Tie { table: table.clone(), head })
            }
            tables => Self::unknown(&format!(
                "its `config.json` ties the head to the embeddings, and {} of its tensors have names of embeddings",
                tables.len()
            )),
        }
    }

    fn unknown(reason: &str) -> Self {
        Self::Unknown { reason: reason.to_owned(), pair: None }
    }
}

/// Tables and heads of models whose tensors cannot be listed.
const COMMON_TABLES: [&str; 5] =
    ["embed_tokens", "model.embed_tokens", "model.language_model.embed_tokens", "transformer.wte", "wte"];
const COMMON_HEADS: [&str; 2] = ["lm_head", "language_model.lm_head"];

/// The modules with a weight whose last name is one of `names`.
fn named(facts: ModelFacts<'_>, has: &dyn Fn(&str) -> bool, names: &[&str], common: &[&str]) -> Vec<String> {
    let Some(shapes) = facts.shapes else {
        let has = |module: &&&str| has(&format!("{module}.weight"));
        return common.iter().filter(has).map(|module| (*module).to_owned()).collect();
    };
    let modules = shapes.iter().filter(|(_, shape)| shape.len() == 2);
    let modules = modules.filter_map(|(name, _)| name.strip_suffix(".weight"));
    modules.filter(|module| names.contains(&last_segment(module))).map(str::to_owned).collect()
}

/// Whether the config ties head and embeddings; `None` if that is not known.
fn flags(facts: ModelFacts<'_>) -> Option<bool> {
    let said = facts.of_language(KEY, Value::as_bool);
    if let Some(first) = said.first() {
        // Versions of transformers differ in which of the two they go by.
        return said.iter().all(|flag| flag == first).then_some(*first);
    }
    let types = facts.of_language("model_type", Value::as_str);
    let default = |model_type: &&str| {
        TIED.contains(model_type).then_some(true).or_else(|| SEPARATE.contains(model_type).then_some(false))
    };
    types.iter().find_map(default)
}

/// Whether the classes that the weights were saved from have a head that writes logits; so does a model of unknown class.
fn writes_logits(facts: ModelFacts<'_>) -> bool {
    let architectures = facts.architectures();
    let ends = ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining"];
    architectures.is_empty() || architectures.iter().any(|name| ends.iter().any(|end| name.ends_with(end)))
}

/// Whether a head that the files do not have may be called otherwise than `lm_head`: `cls.predictions.decoder` and its like.
fn has_other_head(facts: ModelFacts<'_>) -> bool {
    const TYPES: [&str; 6] = ["bert", "camembert", "electra", "modernbert-decoder", "roberta", "xlm-roberta"];
    let is_masked = |name: &&str| name.ends_with("ForMaskedLM") || name.ends_with("ForPreTraining");
    facts.of_language("model_type", Value::as_str).iter().any(|own| TYPES.contains(own))
        || facts.architectures().iter().any(is_masked)
}

/// Whether a module of this path is called as heads are.
pub(super) fn is_head(path: &str) -> bool {
    HEADS.contains(&last_segment(path))
}

/// Whether a module of this path is called as the table that encoders and decoders share.
pub(super) fn is_shared_table(path: &str) -> bool {
    last_segment(path) == "shared"
}

/// Whether a module of this path is called as embeddings are.
pub(super) fn is_table(path: &str) -> bool {
    TABLES.contains(&last_segment(path))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::{Tie, Tying};
    use crate::store::model_facts::ModelFacts;

    fn tying(config: &Value, names: &[&str]) -> Tying {
        let shapes: BTreeMap<String, Vec<usize>> =
            names.iter().map(|name| ((*name).to_owned(), vec![8, 4])).collect();
        Tying::of(ModelFacts { config: Some(config), shapes: Some(&shapes) }, &|name| {
            shapes.contains_key(name)
        })
    }

    fn tied(table: &str, head: &str) -> Tying {
        Tying::Tied(Tie { table: table.to_owned(), head: head.to_owned() })
    }

    #[test]
    fn what_the_config_leaves_out_is_the_default_of_its_type() {
        let gpt2 = ["transformer.wte.weight", "transformer.wpe.weight"];
        assert_eq!(tying(&json!({ "model_type": "gpt2" }), &gpt2), tied("transformer.wte", "lm_head"));
        assert_eq!(tying(&json!({ "model_type": "gpt2" }), &["wte.weight"]), tied("wte", "lm_head"));
        let llama = ["model.embed_tokens.weight"];
        assert_eq!(tying(&json!({ "model_type": "llama" }), &llama), Tying::Separate);
        let said = json!({ "model_type": "mine", "tie_word_embeddings": true });
        assert_eq!(tying(&said, &llama), tied("model.embed_tokens", "lm_head"));
        assert!(matches!(tying(&json!({ "model_type": "mine" }), &llama), Tying::Unknown { .. }));
        let base_only = json!({ "model_type": "gpt2", "architectures": ["GPT2Model"] });
        assert_eq!(tying(&base_only, &gpt2), Tying::Separate);
    }

    #[test]
    fn a_head_of_another_name_is_not_guessed() {
        let masked = json!({ "model_type": "bert", "architectures": ["BertForMaskedLM"] });
        let names = ["bert.embeddings.word_embeddings.weight", "cls.predictions.bias"];
        assert!(matches!(tying(&masked, &names), Tying::Unknown { .. }));
        let bare = json!({ "model_type": "bert", "architectures": ["BertModel"] });
        assert_eq!(tying(&bare, &names[..1]), Tying::Separate);
    }

    #[test]
    fn the_head_is_where_the_language_model_is() {
        let said = json!({ "model_type": "pair", "text_config": { "tie_word_embeddings": true } });
        let within = ["language_model.model.embed_tokens.weight"];
        assert_eq!(
            tying(&said, &within),
            tied("language_model.model.embed_tokens", "language_model.lm_head")
        );
        let above = ["model.language_model.embed_tokens.weight"];
        assert_eq!(tying(&said, &above), tied("model.language_model.embed_tokens", "lm_head"));
        let several = ["a.embed_tokens.weight", "b.embed_tokens.weight"];
        assert!(matches!(tying(&said, &several), Tying::Unknown { .. }));
    }
}
