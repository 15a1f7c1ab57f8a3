//! PEFT's default targets by architecture, for configs and models that name none.

use crate::select::TargetModules;

fn names(names: &[&str]) -> TargetModules {
    TargetModules::names(names.iter().copied())
}

/// IA3's targets in models of transformers' type `model_type`, and which of them are feed-forward layers.
pub(super) fn default_targets(model_type: &str) -> Option<(TargetModules, TargetModules)> {
    let (targets, feedforward): (&[&str], &[&str]) = match model_type {
        "t5" => (&["k", "v", "wo"], &["wo"]),
        "mt5" => (&["k", "v", "wi_1"], &[]),
        "gpt2" | "gpt_bigcode" => (&["c_attn", "mlp.c_proj"], &["mlp.c_proj"]),
        "bloom" => (&["query_key_value", "mlp.dense_4h_to_h"], &["mlp.dense_4h_to_h"]),
        "roberta" | "bert" => (&["key", "value", "output.dense"], &["output.dense"]),
        "opt" => (&["q_proj", "k_proj", "fc2"], &["fc2"]),
        "gptj" => (&["q_proj", "v_proj", "fc_out"], &["fc_out"]),
        "gpt_neox" | "RefinedWebModel" | "RefinedWeb" | "falcon" => {
            (&["query_key_value", "dense_4h_to_h"], &["dense_4h_to_h"])
        }
        "gpt_neo" => (&["q_proj", "v_proj", "c_proj"], &["c_proj"]),
        "bart" | "phi" => (&["q_proj", "v_proj", "fc2"], &["fc2"]),
        "llama" | "mistral" => (&["k_proj", "v_proj", "down_proj"], &["down_proj"]),
        "llama4" | "gemma" | "gemma2" | "gemma3_text" | "qwen2" | "qwen3" => {
            (&["q_proj", "v_proj", "down_proj"], &["down_proj"])
        }
        "mixtral" => (&["k_proj", "v_proj", "w2"], &["w2"]),
        "deberta-v2" => (&["key_proj", "value_proj", "output.dense"], &["output.dense"]),
        "deberta" => (&["in_proj", "output.dense"], &["output.dense"]),
        _ => return None,
    };
    Some((names(targets), names(feedforward)))
}
