//! PEFT's default targets by architecture, for configs and models that name none.

use crate::select::TargetModules;

fn names(names: &[&str]) -> TargetModules {
    TargetModules::names(names.iter().copied())
}

/// Attention projections of models whose language part is one of several.
const LANGUAGE_MODEL_QV: &str = r".*language_model\..*\.(q_proj|v_proj)";

/// LoRA's targets in models of transformers' type `model_type`.
pub(super) fn lora(model_type: &str) -> Option<TargetModules> {
    Some(match model_type {
        "t5" | "mt5" => names(&["q", "v"]),
        "bart" | "opt" | "gptj" | "gpt_neo" | "llama" | "llama4" | "mistral" | "mixtral" | "stablelm"
        | "gemma" | "gemma2" | "gemma3_text" | "qwen2" | "qwen3" => names(&["q_proj", "v_proj"]),
        "gpt2" | "gpt_bigcode" => names(&["c_attn"]),
        "bloom" | "gpt_neox" | "chatglm" | "RefinedWebModel" | "RefinedWeb" | "falcon" => {
            names(&["query_key_value"])
        }
        "blip-2" => names(&["q", "v", "q_proj", "v_proj"]),
        "bert" | "roberta" | "xlm-roberta" | "electra" | "layoutlm" => names(&["query", "value"]),
        "deberta-v2" => names(&["query_proj", "value_proj"]),
        "deberta" => names(&["in_proj"]),
        "mpt" => names(&["Wqkv"]),
        "btlm" => names(&["c_proj", "c_attn"]),
        "codegen" => names(&["qkv_proj"]),
        "phi" => names(&["q_proj", "v_proj", "fc1", "fc2"]),
        "gemma4" => TargetModules::regex(LANGUAGE_MODEL_QV),
        "nemotron_h" => names(&["q_proj", "k_proj", "v_proj", "o_proj"]),
        "rwkv" => names(&["key", "value", "receptance", "output"]),
        "rwkv7" => names(&["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"]),
        _ => return None,
    })
}

/// AdaLoRA's targets.
pub(super) fn adalora(model_type: &str) -> Option<TargetModules> {
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

/// IA3's targets and, of those, the feed-forward layers.
pub(super) fn ia3(model_type: &str) -> Option<(TargetModules, TargetModules)> {
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
