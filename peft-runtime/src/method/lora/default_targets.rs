//! PEFT's default targets by architecture, for configs and models that name none.

use crate::select::TargetModules;

fn names(names: &[&str]) -> TargetModules {
    TargetModules::names(names.iter().copied())
}

/// Attention projections of models whose language part is one of several.
const LANGUAGE_MODEL_QV: &str = r".*language_model\..*\.(q_proj|v_proj)";

/// LoRA's targets in models of transformers' type `model_type`.
pub(super) fn default_targets(model_type: &str) -> Option<TargetModules> {
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
