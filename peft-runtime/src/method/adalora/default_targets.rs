//! PEFT's default targets by architecture, for configs and models that name none.

use crate::select::TargetModules;

fn names(names: &[&str]) -> TargetModules {
    TargetModules::names(names.iter().copied())
}

/// Attention projections of models whose language part is one of several.
const LANGUAGE_MODEL_QV: &str = r".*language_model\..*\.(q_proj|v_proj)";

/// AdaLoRA's targets in models of transformers' type `model_type`.
pub(super) fn default_targets(model_type: &str) -> Option<TargetModules> {
    Some(match model_type {
        "t5" => names(&["q", "k", "v", "o", "wi", "wo"]),
        "mt5" => names(&["q", "k", "v", "o", "wi_0", "wi_1", "wo"]),
        "bart" | "opt" => names(&["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]),
        "gpt2" | "gpt_bigcode" => names(&["c_attn"]),
        "bloom" | "gpt_neox" => names(&["query_key_value"]),
        "gptj" | "gpt_neo" | "llama" | "llama4" | "gemma" | "gemma2" | "gemma3_text" | "qwen2" | "qwen3" => {
            names(&["q_proj", "v_proj"])
        }
        "bert" => names(&["query", "value"]),
        "roberta" => names(&["query", "key", "value", "dense"]),
        "deberta-v2" => names(&["query_proj", "key_proj", "value_proj", "dense"]),
        "deberta" => names(&["in_proj"]),
        "gemma4" => TargetModules::regex(LANGUAGE_MODEL_QV),
        "nemotron_h" => names(&["q_proj", "k_proj", "v_proj", "o_proj"]),
        _ => return None,
    })
}
